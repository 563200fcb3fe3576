// The interface of an inference runtime: prepared images in, one output tensor out.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "contract.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// The network's input: (N, 3, H, W) floats, or (N, H, W, 3) bytes.
struct Input {
  const void* data;
  Shape shape;

  std::size_t values() const {
    return static_cast<std::size_t>(shape[0]) * area(shape[1], shape[2]) * 3;
  }
};

// The output of one run. The runtime owns the memory, which is valid during Reader::read only.
struct OutputView {
  const float* scores = nullptr;         // (N, classes, H, W), or
  const std::uint8_t* labels = nullptr;  // (N, H, W)
  std::array<std::int64_t, 4> shape{};
  std::size_t sides = 0;

  std::size_t values() const {
    std::size_t count = 1;
    for (std::size_t side = 0; side < sides; ++side) count *= static_cast<std::size_t>(shape[side]);
    return count;
  }
};

// Receives an output while its memory is valid.
class Reader {
 public:
  virtual ~Reader() = default;
  virtual void read(const OutputView& output) = 0;
};

// Passes the output to a callable. A template, because std::function would allocate.
template <typename Call>
class CallingReader final : public Reader {
 public:
  explicit CallingReader(Call call) : call_(std::move(call)) {}
  void read(const OutputView& output) override { call_(output); }

 private:
  Call call_;
};

// Refuse a network whose input or output does not match its contract, with Python's message. A
// contract that does not match would cause a read out of bounds, or an error at the first image.
// Throws Error.
void check_tensors(const std::string& path, const Contract& contract, const Sides& input,
                   const Sides& output);
// Refuse an output that does not match its contract, for an input of height x width. At run time
// the open dimensions have sizes. Throws Error.
void check_output(const std::string& path, const Contract& contract, const OutputView& output,
                  int height, int width, int count = 1);
// Refuse labels that are not class ids of the contract. Throws Error.
void check_labels(const std::string& path, const Contract& contract, const std::uint8_t* labels,
                  std::size_t count);

// Return the output's shape as text, such as 1x11x360x480.
std::string text_of(const OutputView& output);

[[noreturn]] void refuse_not_finite(const std::string& path);

// A network that is loaded in a runtime. May be used from several threads.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual const Contract& contract() const = 0;
  virtual std::string name() const = 0;
  virtual bool takes_any_size() const = 0;
  virtual bool takes_batches() const = 0;
  // Run the network on the input, and pass the output to `reader`.
  virtual void run(const Input& input, Reader& reader) const = 0;

  // Compute labels at the image's own size on the device. Returns false if this runtime cannot.
  virtual bool label(const ImageView&, std::uint8_t*) const { return false; }
  // Run the network on one prepared image, from device memory to device memory, on the caller's
  // stream.
  virtual void enqueue(const void* input, void* output, void* stream) const;
};

std::unique_ptr<Backend> open_onnxruntime(const std::string& path, const Options& options);
// Throws Error if this library was built without TensorRT's headers.
std::unique_ptr<Backend> open_tensorrt(const std::string& path, const Options& options);

}  // namespace segdeploy
