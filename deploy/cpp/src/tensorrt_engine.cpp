#include "tensorrt_engine.hpp"

#include <cstdlib>
#include <limits>
#include <utility>

#include "backend.hpp"

namespace segdeploy {
namespace {

using nvinfer1::DataType;

// Return the data type of an ONNX type name. Other types become kINT32, which find_tensors refuses.
DataType type_of(const std::string& name) {
  if (name == "float") return DataType::kFLOAT;
  if (name == "float16") return DataType::kHALF;
  if (name == "uint8") return DataType::kUINT8;
  return DataType::kINT32;
}

[[noreturn]] void refuse(const std::string& path, const Shape& shape, const Shape& low,
                         const Shape& high) {
  const auto text_of = [](const Shape& one) {
    return std::to_string(one[0]) + "x" + std::to_string(one[1]) + "x" + std::to_string(one[2]);
  };
  throw Error(path + ": the engine takes no input of " + text_of(shape) + "; it was built for " +
              text_of(low) + " to " + text_of(high) +
              "; build it with another --min, --opt and --max");
}

std::string without_stripped(Manifest manifest) {
  manifest.weights.clear();
  return manifest.rebuild();
}

}  // namespace

std::size_t size_of(DataType type) {
  if (type == DataType::kFLOAT) return 4;
  return type == DataType::kHALF ? 2 : 1;
}

TensorRtEngine::TensorRtEngine(const std::string& given, const Options& options) : path(given) {
  Engine file = read_engine(path);
  manifest = std::move(file.manifest);
  check_tensors(path, contract(), manifest.input.shape, manifest.output.shape);
  library = std::make_unique<TensorRtLibrary>(manifest.backend, options);
  check_version(manifest, path, library->version());
  cuda = Cuda::open();
  check_host(manifest, path, cuda ? &cuda->gpu() : nullptr);
  if (manifest.weights == "stripped") {
    throw Error(path +
                ": holds no weights, and this library cannot give it any; build it without "
                "--stripped: " +
                without_stripped(manifest));
  }
  const CudaScope scope(*cuda);
  try {
    engine = library->read(file.plan, manifest.version_compatible, path);
  } catch (const Error& error) {
    throw Error(std::string(error.what()) + "; else build it again: " + manifest.rebuild());
  }
  try {
    find_tensors();
  } catch (...) {
    engine.reset();  // while its CUDA context is current
    throw;
  }
  if (options.gpu_preprocessing && output_type != DataType::kHALF &&
      input_type != DataType::kHALF) {
    kernels = Kernels::load(cuda);
  }
  captures_graphs = options.cuda_graph && contract().profiles.empty();
}

int TensorRtEngine::profile_for(const Shape& shape) const {
  const auto& profiles = contract().profiles;
  const Shape own = {1, contract().height, contract().width};
  if (profiles.empty() && shape != own) refuse(path, shape, own, own);
  int found = 0, least = std::numeric_limits<int>::max();
  for (std::size_t index = 0; index < profiles.size(); ++index) {
    int distance = 0;
    for (std::size_t side = 0; side < shape.size(); ++side) {
      distance += std::abs(profiles[index].optimum[side] - shape[side]);
    }
    if (!profiles[index].takes(shape) || distance >= least) continue;
    least = distance;
    found = static_cast<int>(index);
  }
  if (!profiles.empty() && least == std::numeric_limits<int>::max()) {
    refuse(path, shape, profiles[0].minimum, profiles[0].maximum);
  }
  return found;
}

// Take the tensors' names and types from the manifest, or from the engine if the manifest does not
// state them.
void TensorRtEngine::find_tensors() {
  input = manifest.input.name;
  output = manifest.output.name;
  input_type = type_of(manifest.input.dtype);
  output_type = type_of(manifest.output.dtype);
  if (input.empty() || output.empty()) ask_engine();
  const auto is_float = [](DataType type) {
    return type == DataType::kFLOAT || type == DataType::kHALF;
  };
  // A contract that does not match its engine would cause a read out of bounds.
  const bool takes = contract().takes_bytes ? input_type == DataType::kUINT8 : is_float(input_type);
  const bool gives =
      contract().gives_labels() ? output_type == DataType::kUINT8 : is_float(output_type);
  if (!takes || !gives) {
    throw Error(path + ": its input or output is not what its contract says; build it again: " +
                manifest.rebuild());
  }
}

void TensorRtEngine::ask_engine() {
  if (!library->describes_engines()) {
    throw Error(path +
                ": its manifest does not name its input and output, and TensorRT-RTX before "
                "1.5 cannot be asked from here; build it again: " +
                manifest.rebuild());
  }
  if (engine->getNbIOTensors() != 2) {
    throw Error(path + ": has " + std::to_string(engine->getNbIOTensors()) +
                " inputs and outputs, not one of each");
  }
  const char* first = engine->getIOTensorName(0);
  const char* second = engine->getIOTensorName(1);
  if (engine->getTensorIOMode(first) != nvinfer1::TensorIOMode::kINPUT) std::swap(first, second);
  input = first;
  output = second;
  input_type = engine->getTensorDataType(first);
  output_type = engine->getTensorDataType(second);
}

}  // namespace segdeploy
