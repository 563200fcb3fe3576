// One call's way through an engine: context, stream and buffers of its own.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <vector>

#include "backend.hpp"
#include "cuda_driver.hpp"
#include "gpu_pictures.hpp"
#include "tensorrt_engine.hpp"

namespace segdeploy {

// One thread's at a time, in the GPU's context.
class TensorRtLane {
 public:
  explicit TensorRtLane(const TensorRtEngine& engine);
  ~TensorRtLane();
  TensorRtLane(const TensorRtLane&) = delete;
  TensorRtLane& operator=(const TensorRtLane&) = delete;

  // Copies the input to the GPU, runs, and hands the output to `reader`.
  void run(const Input& input, Reader& reader);
  // From a picture's bytes to its labels, all on the GPU; false if a score is not finite.
  bool label(const ImageView& image, std::uint8_t* labels);
  // Between memory of the caller's, on a stream of the caller's.
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
  std::unique_ptr<GpuPictures> pictures_;
  std::vector<float> floats_;
  nvinfer1::Dims given_{};
  Shape shape_{};
  int profile_ = 0;
  int runs_ = 0;
  CUgraphExec graph_ = nullptr;
};

}  // namespace segdeploy
