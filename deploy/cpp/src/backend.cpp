#include "backend.hpp"

namespace segdeploy {

std::string told(const OutputView& output) {
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
