// segdeploy: a segmentation network behind one call. The file says the rest: its ONNX metadata, or
// the manifest beside an engine, hold the size, the normalisation, the classes and the output.
//
//     segdeploy::Model model("road.onnx");
//     segdeploy::Labels labels = model.predict({pixels, height, width});
//
// No type of ONNX Runtime, CUDA or TensorRT is needed to use this header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace segdeploy {

// What cannot be used: the message says what, where, and how to mend it.
class Error : public std::runtime_error {
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
  int threads = 0;  // inside an operator; 0 leaves it to the runtime
};

// A network that is ready to run. Safe to call from several threads.
class Model {
 public:
  explicit Model(const std::string& path, const Options& options = {});
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  // Labels of the picture's own size.
  Labels predict(const ImageView& image) const;
  // The same into `labels`, whose memory is used again where it is large enough.
  void predict(const ImageView& image, Labels& labels) const;

  // Runs the golden vectors of a file, and compares each stage with the reference's.
  SelfTest self_test(const std::string& golden) const;

  const std::vector<std::string>& classes() const;
  int height() const;  // of the network's input
  int width() const;
  // The runtime and its version, such as "onnxruntime 1.32.0".
  std::string runtime() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The version of this library.
const char* version();

}  // namespace segdeploy
