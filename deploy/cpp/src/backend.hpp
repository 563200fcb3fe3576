// A runtime behind the library: pictures in, one output.
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

// What a network is run on: (N, 3, H, W) floats, or (N, H, W, 3) bytes.
struct Input {
  const void* data;
  Shape shape;

  std::size_t values() const {
    return static_cast<std::size_t>(shape[0]) * area(shape[1], shape[2]) * 3;
  }
};

// The output of one run. Its memory is the runtime's, and lives as long as the call that reads it.
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

// What is done with an output, while it is there.
class Reader {
 public:
  virtual ~Reader() = default;
  virtual void read(const OutputView& output) = 0;
};

// Calls a function with the output; std::function would allocate.
template <typename Call>
class CallingReader final : public Reader {
 public:
  explicit CallingReader(Call call) : call_(std::move(call)) {}
  void read(const OutputView& output) override { call_(output); }

 private:
  Call call_;
};

// Refuses a network whose tensors are not what its contract says, in Python's words. A contract that
// does not fit would be read beyond its memory, or fail at the first image. Throws Error.
void check_tensors(const std::string& path, const Contract& contract, const Sides& input,
                   const Sides& output);
// The same of an output that was given for an input of height x width: open sides have sizes now.
void check_output(const std::string& path, const Contract& contract, const OutputView& output,
                  int height, int width, int count = 1);
// Refuses labels that name no class. Throws Error.
void check_labels(const std::string& path, const Contract& contract, const std::uint8_t* labels,
                  std::size_t count);

// The output's shape, as 1x11x360x480.
std::string told(const OutputView& output);

[[noreturn]] void refuse_not_finite(const std::string& path);

// Safe to run from several threads.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual const Contract& contract() const = 0;
  virtual std::string name() const = 0;
  virtual bool takes_any_size() const = 0;
  virtual bool takes_batches() const = 0;
  // Runs the input, and hands the output to `reader`.
  virtual void run(const Input& input, Reader& reader) const = 0;

  // Labels of a picture's own size, made on the device; false where this runtime has no way to.
  virtual bool label(const ImageView&, std::uint8_t*) const { return false; }
  // Runs one prepared picture from device memory into device memory, on a stream of the caller's.
  virtual void enqueue(const void* input, void* output, void* stream) const;
};

std::unique_ptr<Backend> open_onnxruntime(const std::string& path, const Options& options);
// Throws Error where this library was built without TensorRT's headers.
std::unique_ptr<Backend> open_tensorrt(const std::string& path, const Options& options);

}  // namespace segdeploy
