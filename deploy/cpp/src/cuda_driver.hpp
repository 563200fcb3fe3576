// The NVIDIA driver, opened at run time: memory, streams, graphs and kernels of one GPU. The library
// needs no CUDA library to start, and runs where there is no GPU.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <string>

#include "manifest.hpp"

namespace segdeploy {

class Cuda {
 public:
  // The GPU of this thread's CUDA context, or the first; null without a driver or a GPU.
  static std::shared_ptr<const Cuda> open();

  ~Cuda();
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;

  const Gpu& gpu() const { return gpu_; }
  CUcontext context() const { return context_; }
  // Throws Error, which says what failed and the driver's reason.
  void check(CUresult result, const char* what) const;

  // Functions of the driver, by their names in cuda.h.
  struct Functions {
    // clang-format off
#define SEGDEPLOY_CUDA_FUNCTIONS(apply) \
  apply(cuInit) apply(cuDeviceGetCount) apply(cuDeviceGet) apply(cuDeviceGetName) \
  apply(cuDeviceGetAttribute) apply(cuDevicePrimaryCtxRetain) \
  apply(cuDevicePrimaryCtxRelease) apply(cuCtxGetDevice) apply(cuCtxPushCurrent) \
  apply(cuCtxPopCurrent) apply(cuGetErrorName) apply(cuMemAlloc) apply(cuMemFree) \
  apply(cuMemHostAlloc) apply(cuMemFreeHost) apply(cuMemcpyHtoDAsync) \
  apply(cuMemcpyDtoHAsync) apply(cuMemsetD8Async) apply(cuStreamCreate) \
  apply(cuStreamDestroy) apply(cuStreamSynchronize) apply(cuStreamWaitEvent) \
  apply(cuStreamBeginCapture) apply(cuStreamEndCapture) apply(cuEventCreate) \
  apply(cuEventRecord) apply(cuEventSynchronize) apply(cuEventDestroy) \
  apply(cuGraphInstantiateWithFlags) apply(cuGraphLaunch) apply(cuGraphDestroy) \
  apply(cuGraphExecDestroy) apply(cuModuleLoadData) apply(cuModuleUnload) \
  apply(cuModuleGetFunction) apply(cuLaunchKernel)
// clang-format on
#define SEGDEPLOY_MEMBER(name) decltype(&::name) name = nullptr;
    SEGDEPLOY_CUDA_FUNCTIONS(SEGDEPLOY_MEMBER)
#undef SEGDEPLOY_MEMBER
  };
  Functions call;

 private:
  Cuda() = default;
  bool start();

  Gpu gpu_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
};

using CudaPointer = std::shared_ptr<const Cuda>;

// Makes the GPU's context the thread's own, until the scope ends.
class CudaScope {
 public:
  explicit CudaScope(const Cuda& cuda);
  ~CudaScope();
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;

 private:
  const Cuda& cuda_;
};

// Memory that grows, and is kept: `device` on the GPU, else pinned, which copies without waiting.
class CudaMemory {
 public:
  CudaMemory(CudaPointer cuda, bool is_pinned) : cuda_(std::move(cuda)), is_pinned_(is_pinned) {}
  ~CudaMemory();
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  // Room for `size` bytes; says whether it lies elsewhere now. What it held is lost then.
  bool grow(std::size_t size);
  CUdeviceptr device() const { return device_; }
  void* data() const { return is_pinned_ ? host_ : reinterpret_cast<void*>(device_); }

 private:
  void free();

  CudaPointer cuda_;
  bool is_pinned_;
  std::size_t size_ = 0;
  CUdeviceptr device_ = 0;
  void* host_ = nullptr;
};

// A stream of its own, which waits for nobody's.
class CudaStream {
 public:
  explicit CudaStream(CudaPointer cuda);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  CUstream get() const { return stream_; }
  void upload(const CudaMemory& from, const CudaMemory& to, std::size_t size) const;
  void download(const CudaMemory& from, const CudaMemory& to, std::size_t size) const;
  void wait() const;

 private:
  CudaPointer cuda_;
  CUstream stream_ = nullptr;
};

}  // namespace segdeploy
