// The CUDA driver API, loaded at run time: memory, streams, graphs and kernels of one GPU. The
// segdeploy library links no CUDA library, and also runs on a host without a GPU.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <string>

#include "manifest.hpp"

namespace segdeploy {

class Cuda {
 public:
  // Open the GPU of this thread's CUDA context, or else the first GPU. Returns null without a
  // driver or a GPU.
  static std::shared_ptr<const Cuda> open();

  ~Cuda();
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;

  const Gpu& gpu() const { return gpu_; }
  CUcontext context() const { return context_; }
  // Throw Error with the failed operation and the driver's reason, unless `result` is a success.
  void check(CUresult result, const char* what) const;

  // Function pointers into the driver, named as in cuda.h.
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

// Makes the GPU's context current in this thread until the scope ends.
class CudaScope {
 public:
  explicit CudaScope(const Cuda& cuda);
  ~CudaScope();
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;

 private:
  const Cuda& cuda_;
};

// A buffer that grows and keeps its memory: device memory, or pinned host memory for asynchronous
// copies.
class CudaMemory {
 public:
  CudaMemory(CudaPointer cuda, bool is_pinned) : cuda_(std::move(cuda)), is_pinned_(is_pinned) {}
  ~CudaMemory();
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  // Ensure room for `size` bytes. Returns whether the buffer was reallocated, which loses its
  // content.
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

// A CUDA stream that does not wait for any other stream.
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
