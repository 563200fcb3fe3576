// Before and after a network on the GPU: a picture's bytes go up, and its labels come down.
#pragma once

#include <memory>
#include <vector>

#include "contract.hpp"
#include "cuda_driver.hpp"
#include "preprocess.hpp"
#include "resize.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// The kernels of kernels.cu, loaded into one GPU's context.
class Kernels {
 public:
  // Null where they were not compiled, or this driver is too old for them.
  static std::shared_ptr<const Kernels> load(const CudaPointer& cuda);
  ~Kernels();
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  // Runs a kernel for `columns` x `rows` threads.
  template <typename... Arguments>
  void run(CUfunction kernel, const CudaStream& stream, std::size_t columns, int rows,
           Arguments... arguments) const {
    void* list[] = {&arguments...};
    start(kernel, stream, columns, rows, list);
  }

  CUfunction resize_columns = nullptr;
  CUfunction resize_rows = nullptr;
  CUfunction normalise = nullptr;
  CUfunction reorder = nullptr;
  CUfunction find_not_finite = nullptr;
  CUfunction best_classes = nullptr;
  CUfunction best_classes_of_small_map = nullptr;
  CUfunction nearest = nullptr;

 private:
  explicit Kernels(CudaPointer cuda) : cuda_(std::move(cuda)) {}
  bool find_all();
  void start(CUfunction kernel, const CudaStream& stream, std::size_t columns, int rows,
             void** arguments) const;

  CudaPointer cuda_;
  CUmodule module_ = nullptr;
};

using KernelsPointer = std::shared_ptr<const Kernels>;

// What one picture after the other passes through; one thread's at a time.
class GpuPictures {
 public:
  GpuPictures(CudaPointer cuda, KernelsPointer kernels, const Contract& contract);

  // Puts the network's input for a picture into device memory. Throws Error for a bad view.
  void prepare(const ImageView& image, const CudaStream& stream, CUdeviceptr input);
  // Makes labels (image.height, image.width) of the network's output (height, width) in device
  // memory, and waits for them. False if a score is NaN or infinity.
  bool label(const ImageView& image, const CudaStream& stream, CUdeviceptr output, int height,
             int width, std::uint8_t* labels);

 private:
  struct Axis {
    Filter filter;
    std::unique_ptr<CudaMemory> taps;
    std::unique_ptr<CudaMemory> weights;
  };

  std::unique_ptr<CudaMemory> memory(bool is_pinned) const;
  void upload_axis(Axis& axis, int from, int to, const CudaStream& stream);
  CUdeviceptr resized(const ImageView& image, const CudaStream& stream);

  CudaPointer cuda_;
  KernelsPointer kernels_;
  const Contract& contract_;
  Axis across_, down_;
  std::unique_ptr<CudaMemory> table_;
  std::unique_ptr<CudaMemory> host_picture_, picture_, between_, resized_;
  std::unique_ptr<CudaMemory> host_labels_, labels_, host_flag_, flag_;
};

}  // namespace segdeploy
