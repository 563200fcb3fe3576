#include "backend.hpp"

#include <algorithm>

namespace segdeploy {
namespace {

constexpr std::int64_t kAny = -1;

std::string text_of(const Sides& sides) {
  std::string text;
  for (const Side& side : sides) {
    text += (text.empty() ? "" : ", ") + (side.is_open() ? side.name : std::to_string(side.size));
  }
  return "(" + text + ")";
}

// Return the output shape of one image, as the contract states it.
std::vector<std::int64_t> output_of(const Contract& contract) {
  const auto classes = static_cast<std::int64_t>(contract.classes.size());
  if (contract.gives_low_resolution_logits) return {classes, kAny, kAny};
  if (contract.output == Output::labels) return {contract.height, contract.width};
  return {classes, contract.height, contract.width};
}

void check_sides(const std::string& path, const char* what, const Sides& sides,
                 const std::vector<std::int64_t>& wanted) {
  bool fits = sides.size() == wanted.size() + 1;
  std::string expected;
  for (std::size_t at = 0; at < wanted.size(); ++at) {
    expected += ", " + (wanted[at] == kAny ? "any" : std::to_string(wanted[at]));
    if (!fits) continue;
    const Side& side = sides[at + 1];
    fits = side.is_open() || (wanted[at] == kAny ? side.size > 0 : side.size == wanted[at]);
  }
  if (!fits) {
    throw Error(path + ": its " + what + " has shape " + text_of(sides) +
                ", but its contract says (N" + expected + "); export it again");
  }
}

}  // namespace

void check_tensors(const std::string& path, const Contract& contract, const Sides& input,
                   const Sides& output) {
  if (!input.empty() && !input[0].is_open() && input[0].size != 1) {
    throw Error(path + ": takes batches of " + std::to_string(input[0].size) +
                " alone; export it for one image, or with a dynamic batch");
  }
  const std::int64_t height = contract.height, width = contract.width;
  check_sides(path, "input", input,
              contract.takes_bytes ? std::vector<std::int64_t>{height, width, 3}
                                   : std::vector<std::int64_t>{3, height, width});
  check_sides(path, "output", output, output_of(contract));
}

void check_output(const std::string& path, const Contract& contract, const OutputView& output,
                  int height, int width, int count) {
  const bool has_scores = output.scores != nullptr;
  const auto classes = static_cast<std::int64_t>(contract.classes.size());
  bool fits = output.sides == (has_scores ? 4U : 3U) && (!has_scores || output.shape[1] == classes);
  fits = fits && output.shape[0] == count;
  if (fits) {
    const std::int64_t high = output.shape[output.sides - 2];
    const std::int64_t wide = output.shape[output.sides - 1];
    fits = contract.gives_low_resolution_logits ? high > 0 && wide > 0
                                                : high == height && wide == width;
  }
  if (!fits) {
    throw Error(path + ": gave an output of shape " + text_of(output) + " for an input of " +
                std::to_string(height) + "x" + std::to_string(width) +
                ", which its contract does not say; export it again");
  }
}

void check_labels(const std::string& path, const Contract& contract, const std::uint8_t* labels,
                  std::size_t count) {
  const std::size_t classes = contract.classes.size();
  std::uint8_t largest = 0;
  for (std::size_t at = 0; at < count; ++at) largest = std::max(largest, labels[at]);
  if (largest >= classes) {
    throw Error(path + ": the network gives the label " + std::to_string(largest) +
                ", and its contract has " + std::to_string(classes) + " classes (0 to " +
                std::to_string(classes - 1) + "); state its classes anew with `segdeploy adopt`");
  }
}

std::string text_of(const OutputView& output) {
  std::string text;
  for (std::size_t side = 0; side < output.sides; ++side) {
    text += (side == 0 ? "" : "x") + std::to_string(output.shape[side]);
  }
  return text;
}

void refuse_not_finite(const std::string& path) {
  throw Error(
      path + ": its output holds NaN or infinity for this image; look for overflow in the network");
}

void Backend::enqueue(const void*, void*, void*) const {
  throw Error("enqueue: " + name() + " takes no device memory; open an engine");
}

#ifndef SEGDEPLOY_TENSORRT
std::unique_ptr<Backend> open_tensorrt(const std::string& path, const Options&) {
  throw Error(path +
              ": is an engine, and this library was built without TensorRT's headers; build "
              "it with TENSORRT_ROOT, or run the .onnx");
}
#endif

}  // namespace segdeploy
