// A runtime behind the library: one picture in, one output.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "contract.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// The output of one run. Its memory is the runtime's, and lives as long as the call that reads it.
struct OutputView {
  const float* scores = nullptr;         // (1, classes, H, W), or
  const std::uint8_t* labels = nullptr;  // (1, H, W)
  std::array<std::int64_t, 4> shape{};
  std::size_t sides = 0;
};

// What is done with an output, while it is there.
class Reader {
 public:
  virtual ~Reader() = default;
  virtual void read(const OutputView& output) = 0;
};

// Safe to run from several threads.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual const Contract& contract() const = 0;
  virtual std::string name() const = 0;
  // Runs the input (1, 3, H, W) floats or (1, H, W, 3) bytes, and hands the output to `reader`.
  virtual void run(const void* input, Reader& reader) const = 0;
};

std::unique_ptr<Backend> open_onnxruntime(const std::string& path, const Options& options);

}  // namespace segdeploy
