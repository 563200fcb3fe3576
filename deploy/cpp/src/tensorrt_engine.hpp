// An engine that was admitted and opened: what it is, and where it runs.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <mutex>
#include <string>

#include "cuda_driver.hpp"
#include "gpu_pictures.hpp"
#include "manifest.hpp"
#include "tensorrt_library.hpp"

namespace segdeploy {

// Bytes of a value of an engine's input or output.
std::size_t size_of(nvinfer1::DataType type);

// Every lane shares it, and reads it alone.
struct TensorRtEngine {
  // Throws Error for an engine that is damaged, or for another machine or version.
  TensorRtEngine(const std::string& path, const Options& options);

  const Contract& contract() const { return manifest.contract; }
  // The profile to run an input with: the one built for it, or nearest; 0 if the engine is static.
  int profile_for(const Shape& shape) const;

  std::string path;
  Manifest manifest;
  std::unique_ptr<TensorRtLibrary> library;
  CudaPointer cuda;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  KernelsPointer kernels;  // null where pictures are prepared on the CPU
  std::string input, output;
  nvinfer1::DataType input_type{}, output_type{};
  bool captures_graphs = false;
  // One thread at a time makes a context, binds a shape, or captures.
  mutable std::mutex setting_up;

 private:
  void find_tensors();
  void ask_engine();
};

}  // namespace segdeploy
