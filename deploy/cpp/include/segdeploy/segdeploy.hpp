// segdeploy: a segmentation network behind one call. The file says the rest: its ONNX metadata, or
// the manifest beside an engine, hold the size, the normalisation, the classes and the output.
//
//     segdeploy::Model model("road.engine");             // or road.onnx
//     segdeploy::Labels labels = model.predict({pixels, height, width});
//
// No type of ONNX Runtime, CUDA or TensorRT is needed to use this header.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// What the library exports; all else in it is hidden.
#define SEGDEPLOY_API __attribute__((visibility("default")))

namespace segdeploy {

// What cannot be used: the message says what, where, and how to mend it.
class SEGDEPLOY_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Format { rgb, bgr, rgba, gray };

// Bytes of a picture that somebody else owns. `stride` is the distance of two rows in bytes; 0 where
// they lie one behind the other.
struct ImageView {
  const std::uint8_t* data = nullptr;
  int height = 0;
  int width = 0;
  std::size_t stride = 0;
  Format format = Format::rgb;
};

// A picture that owns its bytes, laid out as an ImageView's.
struct Image {
  std::vector<std::uint8_t> data;
  int height = 0;
  int width = 0;
  std::size_t stride = 0;
  Format format = Format::rgb;
};

// The best class of each pixel, row by row.
struct Labels {
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> data;

  std::uint8_t at(int row, int column) const {
    return data[static_cast<std::size_t>(row) * static_cast<std::size_t>(width) +
                static_cast<std::size_t>(column)];
  }
};

// Of each class a map (classes, height, width); they sum to 1 a pixel.
struct Probabilities {
  int classes = 0;
  int height = 0;
  int width = 0;
  std::vector<float> data;
};

enum class Fuse { mean, max };

// Several runs for one picture. A dynamic network that ends in logits takes `scales` and `flip`
// (the mirrored picture too), which are fused; `tile` leaves the picture at its size, and runs
// overlapping windows of the network's.
struct Passes {
  std::vector<double> scales;
  bool flip = false;
  Fuse fuse = Fuse::mean;
  bool tile = false;
};

// What a host makes of golden vectors: the largest difference of the network's input, that of its
// raw output over the reference's range, and the share of equal labels, picture by picture.
struct SelfTest {
  struct Picture {
    float input = 0;
    float output = 0;
    float agreement = 0;
  };
  std::vector<Picture> pictures;
  std::string complaint;  // the first stage that differs; empty if it holds
};

struct Options {
  // Path or name of ONNX Runtime's library; empty: SEGDEPLOY_ONNXRUNTIME, then libonnxruntime.so.1.
  std::string onnxruntime;
  // Who runs an .onnx in ONNX Runtime: cpu (also if empty), cuda or tensorrt.
  std::string provider;
  // Path or name of TensorRT's library; empty: SEGDEPLOY_TENSORRT or SEGDEPLOY_TENSORRT_RTX, then
  // where the loader looks.
  std::string tensorrt;
  int threads = 0;              // inside an operator of ONNX Runtime; 0 leaves it to the runtime
  int contexts = 4;             // calls of an engine that run at once, and threads of `submit`
  int queue = 16;               // images that wait for a thread of `submit`; the next one blocks
  bool cuda_graph = true;       // replay a static engine as a CUDA graph
  bool pictures_on_gpu = true;  // of an engine: pre- and postprocess on the GPU, too
};

// A network that is ready to run. Safe to call from several threads. Its functions throw Error, or what
// the standard library throws, std::bad_alloc say. One that was moved from may only be assigned to.
class SEGDEPLOY_API Model {
 public:
  explicit Model(const std::string& path, const Options& options = {});
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  // Labels of the picture's own size.
  Labels predict(const ImageView& image) const;
  Labels predict(const ImageView& image, const Passes& passes) const;
  // The same into memory that is there: a `Labels` that grows where it must, or height x width bytes.
  void predict(const ImageView& image, Labels& labels) const;
  void predict(const ImageView& image, std::uint8_t* labels) const;
  // Of several pictures, run together as far as the network takes a batch.
  std::vector<Labels> predict(const std::vector<ImageView>& images) const;
  // Starts, and returns: `get` waits for the labels, or throws what `predict` would. It waits itself
  // while `Options::queue` images wait. The model's destructor waits until every image that was
  // submitted is done, also where nobody kept its future; a future may be read afterwards.
  // The bytes of a view must live until `get` returns.
  [[nodiscard]] std::future<Labels> submit(const ImageView& image) const;
  // The same of an image that is kept until its labels are there.
  [[nodiscard]] std::future<Labels> submit(Image image) const;

  // Probabilities of the picture's own size. Not of a network that ends in labels.
  Probabilities probabilities(const ImageView& image, const Passes& passes = {}) const;

  // For pipelines that sit on the GPU: runs an engine from the network's input to its raw output,
  // both in device memory, on the caller's `stream` (a cudaStream_t). Returns when it is queued.
  // The model waits for what was queued before it ends; the memory must live as long.
  // The input is (1, 3, H, W), normalised, or (1, H, W, 3) bytes, as the engine's contract says.
  void enqueue(const void* input, void* output, void* stream) const;

  // Runs the golden vectors of a file, and compares each stage with the reference's.
  SelfTest self_test(const std::string& golden) const;

  const std::vector<std::string>& classes() const;
  const std::vector<std::array<std::uint8_t, 3>>& palette() const;  // RGB, by class
  int height() const;                                               // of the network's input
  int width() const;
  // The runtime and its version, such as "onnxruntime 1.32.0".
  std::string runtime() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Lays the classes' colours over a picture, into height x width x 3 bytes of RGB; ids outside the
// palette leave it as it is.
SEGDEPLOY_API void overlay(const ImageView& image, const Labels& labels,
                           const std::vector<std::array<std::uint8_t, 3>>& palette,
                           std::uint8_t* rgb, float opacity = 0.6F);

// The version of this library.
SEGDEPLOY_API const char* version();

}  // namespace segdeploy
