// An execution context of an engine with its own stream and buffers, for one call at a time.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <vector>

#include "backend.hpp"
#include "cuda_driver.hpp"
#include "gpu_processing.hpp"
#include "tensorrt_engine.hpp"

namespace segdeploy {

// Only one thread may use a slot at a time. The GPU's context must be current.
class ExecutionContextSlot {
 public:
  explicit ExecutionContextSlot(const TensorRtEngine& engine);
  ~ExecutionContextSlot();
  ExecutionContextSlot(const ExecutionContextSlot&) = delete;
  ExecutionContextSlot& operator=(const ExecutionContextSlot&) = delete;

  // Copy the input to the GPU, run the engine, and pass the output to `reader`.
  void run(const Input& input, Reader& reader);
  // Compute labels from an image's bytes, entirely on the GPU. Returns false if a score is NaN or
  // infinity.
  bool label(const ImageView& image, std::uint8_t* labels);
  // Run the engine on the caller's device memory and the caller's stream.
  void enqueue(void* input, void* output, CUstream stream);

 private:
  void must(bool done, const char* what) const;
  void set_shape(const Shape& shape, CUstream stream);
  void set_addresses(void* input, void* output);
  void bind(const Shape& shape);
  std::size_t output_values() const;
  std::size_t output_bytes() const;
  void execute();
  bool capture();

  const TensorRtEngine& engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  CudaStream stream_;
  CudaMemory host_input_, host_output_, input_, output_;
  std::unique_ptr<GpuProcessor> processor_;
  std::vector<float> floats_;
  nvinfer1::Dims given_{};
  Shape shape_{};
  int profile_ = 0;
  int runs_ = 0;
  CUgraphExec graph_ = nullptr;
};

}  // namespace segdeploy
