// segdeploy: semantic-segmentation inference behind one call. The input size, the normalization,
// the classes and the output type come with the model: from the metadata of the ONNX file, or from
// the manifest beside the engine.
//
//     segdeploy::Model model("road.engine");             // or road.onnx
//     segdeploy::Labels labels = model.predict({pixels, height, width});
//
// This header uses no type of ONNX Runtime, CUDA or TensorRT.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// Marks an exported symbol. All other symbols of the library are hidden.
#define SEGDEPLOY_API __attribute__((visibility("default")))

namespace segdeploy {

// The library's exception. The message states what is wrong, where, and how to fix it.
class SEGDEPLOY_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Format { rgb, bgr, rgba, gray };

// A view of image bytes that the caller owns. `stride` is the distance between the starts of two
// rows in bytes; 0 means that the rows are contiguous.
struct ImageView {
  const std::uint8_t* data = nullptr;
  int height = 0;
  int width = 0;
  std::size_t stride = 0;
  Format format = Format::rgb;
};

// An image that owns its bytes. The layout is that of ImageView.
struct Image {
  std::vector<std::uint8_t> data;
  int height = 0;
  int width = 0;
  std::size_t stride = 0;
  Format format = Format::rgb;
};

// The id of the best class of each pixel, in row-major order (height, width).
struct Labels {
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> data;

  std::uint8_t at(int row, int column) const {
    return data[static_cast<std::size_t>(row) * static_cast<std::size_t>(width) +
                static_cast<std::size_t>(column)];
  }
};

// Class probabilities (classes, height, width). They sum to 1 at each pixel.
struct Probabilities {
  int classes = 0;
  int height = 0;
  int width = 0;
  std::vector<float> data;
};

enum class Fuse { mean, max };

// Several runs of the network per image. `scales` and `flip` (run the mirrored image too) are
// test-time augmentation for a dynamic network with logits output; `fuse` combines the logits.
// `tile` keeps the image at its own size, and runs overlapping windows of the network's input size.
struct InferenceOptions {
  std::vector<double> scales;
  bool flip = false;
  Fuse fuse = Fuse::mean;
  bool tile = false;
};

// The result of comparing this host with golden vectors. Per image: the largest difference of the
// network's input, the largest difference of its raw output divided by the range of the reference
// output, and the fraction of labels that equal the reference.
struct SelfTest {
  struct Difference {
    float input = 0;
    float output = 0;
    float agreement = 0;
  };
  std::vector<Difference> images;
  std::string failure_message;  // the first stage that differs; empty if none does
};

struct Options {
  // Path or name of the ONNX Runtime library. If empty: the environment variable
  // SEGDEPLOY_ONNXRUNTIME, then libonnxruntime.so.1.
  std::string onnxruntime;
  // Execution provider of ONNX Runtime for an .onnx file: cpu (also if empty), cuda or tensorrt.
  std::string provider;
  // Path or name of the TensorRT library. If empty: the environment variable SEGDEPLOY_TENSORRT or
  // SEGDEPLOY_TENSORRT_RTX, then the search path of the dynamic loader.
  std::string tensorrt;
  int threads = 0;                // intra-op threads of ONNX Runtime; 0: the runtime's default
  int contexts = 4;               // concurrent calls of an engine, and threads of `submit`
  int queue = 16;                 // images waiting for a `submit` thread; the next one blocks
  bool cuda_graph = true;         // replay a static engine as a CUDA graph
  bool gpu_preprocessing = true;  // for an engine: preprocess and postprocess on the GPU
};

// A network that is ready to run. Its functions may be called from several threads. They throw
// Error, or exceptions of the standard library such as std::bad_alloc. A Model that was moved from
// may only be assigned to or destroyed.
class SEGDEPLOY_API Model {
 public:
  explicit Model(const std::string& path, const Options& options = {});
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  // Return labels at the image's own size.
  Labels predict(const ImageView& image) const;
  Labels predict(const ImageView& image, const InferenceOptions& options) const;
  // Write the labels into existing memory: a `Labels` that grows if needed, or height x width
  // bytes.
  void predict(const ImageView& image, Labels& labels) const;
  void predict(const ImageView& image, std::uint8_t* labels) const;
  // Return the labels of several images, batched as far as the network supports batches.
  std::vector<Labels> predict(const std::vector<ImageView>& images) const;
  // Queue an image for a background thread, and return a future. `get` waits for the labels, or
  // throws what `predict` would throw. `submit` blocks while `Options::queue` images are waiting.
  // The model's destructor waits for all submitted images, even if their futures were discarded.
  // A future may be read after the model is destroyed. The bytes of a view must live until `get`
  // returns.
  [[nodiscard]] std::future<Labels> submit(const ImageView& image) const;
  // As above, for an image that the model keeps until its labels are computed.
  [[nodiscard]] std::future<Labels> submit(Image image) const;

  // Return probabilities at the image's own size. Throws Error for a network with labels output.
  Probabilities probabilities(const ImageView& image, const InferenceOptions& options = {}) const;

  // Run an engine on device memory, for pipelines that stay on the GPU: from the network's input to
  // its raw output, on the caller's `stream` (a cudaStream_t). Returns once the run is queued.
  // The input is (1, 3, H, W), normalized, or (1, H, W, 3) bytes, as the engine's contract states.
  // Both buffers must live until the run is done. The model's destructor waits for queued runs.
  void enqueue(const void* input, void* output, void* stream) const;

  // Run the golden vectors of a file, and compare each stage with the reference.
  SelfTest self_test(const std::string& golden) const;

  const std::vector<std::string>& classes() const;
  const std::vector<std::array<std::uint8_t, 3>>& palette() const;  // RGB, by class id
  int height() const;                                               // network input, in pixels
  int width() const;
  // Return the runtime and its version, such as "onnxruntime 1.32.0".
  std::string runtime() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Blend the class colors over an image, and write height x width x 3 bytes of RGB. Pixels whose
// class id is outside the palette keep their color.
SEGDEPLOY_API void overlay(const ImageView& image, const Labels& labels,
                           const std::vector<std::array<std::uint8_t, 3>>& palette,
                           std::uint8_t* rgb, float opacity = 0.6F);

// Return the version of this library.
SEGDEPLOY_API const char* version();

}  // namespace segdeploy
