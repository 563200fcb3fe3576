// An engine that passed all checks and is loaded, with its runtime library and its GPU.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <mutex>
#include <string>

#include "cuda_driver.hpp"
#include "gpu_processing.hpp"
#include "manifest.hpp"
#include "tensorrt_library.hpp"

namespace segdeploy {

// Return the size in bytes of one value of an engine's input or output.
std::size_t size_of(nvinfer1::DataType type);

// Shared by all execution context slots, which only read it.
struct TensorRtEngine {
  // Throws Error for an engine that is damaged, or that was built for another machine or version.
  TensorRtEngine(const std::string& path, const Options& options);

  const Contract& contract() const { return manifest.contract; }
  // Return the index of the profile for an input: of the profiles that take its shape, the profile
  // with the nearest optimum; 0 if the engine is static. Throws Error if the shape does not fit.
  int profile_for(const Shape& shape) const;

  std::string path;
  Manifest manifest;
  std::unique_ptr<TensorRtLibrary> library;
  CudaPointer cuda;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  KernelsPointer kernels;  // null if images are preprocessed on the CPU
  std::string input, output;
  nvinfer1::DataType input_type{}, output_type{};
  bool captures_graphs = false;
  // Held while a thread creates a context, binds a shape, or captures a CUDA graph.
  mutable std::mutex setting_up;

 private:
  void find_tensors();
  void ask_engine();
};

}  // namespace segdeploy
