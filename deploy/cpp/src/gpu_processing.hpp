// Preprocessing and postprocessing on the GPU: an image's bytes are uploaded, and its labels are
// downloaded.
#pragma once

#include <memory>
#include <vector>

#include "contract.hpp"
#include "cuda_driver.hpp"
#include "preprocess.hpp"
#include "resize.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// The kernels of kernels.cu, loaded into the context of one GPU.
class Kernels {
 public:
  // Load the kernels. Returns null if they were not compiled, or if the driver is too old for them.
  static std::shared_ptr<const Kernels> load(const CudaPointer& cuda);
  ~Kernels();
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  // Launch a kernel with at least `columns` x `rows` threads.
  template <typename... Arguments>
  void run(CUfunction kernel, const CudaStream& stream, std::size_t columns, int rows,
           Arguments... arguments) const {
    void* list[] = {&arguments...};
    start(kernel, stream, columns, rows, list);
  }

  CUfunction resize_columns = nullptr;
  CUfunction resize_rows = nullptr;
  CUfunction normalize = nullptr;
  CUfunction reorder = nullptr;
  CUfunction find_not_finite = nullptr;
  CUfunction best_classes = nullptr;
  CUfunction best_classes_of_low_resolution = nullptr;
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

// Processes one image after another in reused buffers. Only one thread may use it at a time.
class GpuProcessor {
 public:
  GpuProcessor(CudaPointer cuda, KernelsPointer kernels, const Contract& contract);

  // Write the network's input for an image into device memory. Throws Error for an invalid view.
  void prepare(const ImageView& image, const CudaStream& stream, CUdeviceptr input);
  // Compute labels (image.height, image.width) from the network's output (height, width) in device
  // memory, and wait for them. Returns false if a score is NaN or infinity.
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
  std::unique_ptr<CudaMemory> host_image_, image_, between_, resized_;
  std::unique_ptr<CudaMemory> host_labels_, labels_, host_flag_, flag_;
};

}  // namespace segdeploy
