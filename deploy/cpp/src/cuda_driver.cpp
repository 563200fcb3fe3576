#include "cuda_driver.hpp"

#include <dlfcn.h>

#include <utility>

#include "segdeploy/segdeploy.hpp"

namespace segdeploy {
namespace {

#define SEGDEPLOY_TEXT(name) #name
// A function's name in cuda.h is a macro for its latest version, which is the symbol's name.
#define SEGDEPLOY_SYMBOL(name) SEGDEPLOY_TEXT(name)

bool find_functions(Cuda::Functions& call) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return false;
#define SEGDEPLOY_FIND(name)                                                                 \
  call.name = reinterpret_cast<decltype(call.name)>(dlsym(library, SEGDEPLOY_SYMBOL(name))); \
  if (call.name == nullptr) return false;
  SEGDEPLOY_CUDA_FUNCTIONS(SEGDEPLOY_FIND)
#undef SEGDEPLOY_FIND
  return true;
}

}  // namespace

CudaPointer Cuda::open() {
  const std::shared_ptr<Cuda> cuda(new Cuda);
  if (!cuda->start()) return nullptr;
  return cuda;
}

bool Cuda::start() {
  int count = 0;
  if (!find_functions(call) || call.cuInit(0) != CUDA_SUCCESS ||
      call.cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0) {
    return false;
  }
  if (call.cuCtxGetDevice(&device_) != CUDA_SUCCESS) {
    check(call.cuDeviceGet(&device_, 0), "find the first GPU");
  }
  char name[256] = {};
  int major = 0, minor = 0;
  check(call.cuDeviceGetName(name, sizeof name, device_), "ask the GPU's name");
  check(call.cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device_),
        "ask the GPU's compute capability");
  check(call.cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device_),
        "ask the GPU's compute capability");
  gpu_ = {name, "sm" + std::to_string(major) + std::to_string(minor)};
  check(call.cuDevicePrimaryCtxRetain(&context_, device_), "take the GPU's context");
  return true;
}

Cuda::~Cuda() {
  if (context_ != nullptr) call.cuDevicePrimaryCtxRelease(device_);
}

void Cuda::check(CUresult result, const char* what) const {
  if (result == CUDA_SUCCESS) return;
  const char* name = nullptr;
  if (call.cuGetErrorName(result, &name) != CUDA_SUCCESS) name = "an unknown error";
  throw Error("CUDA: cannot " + std::string(what) + " (" + name + ")" +
              (gpu_.name.empty() ? "" : " on " + gpu_.name));
}

CudaScope::CudaScope(const Cuda& cuda) : cuda_(cuda) {
  cuda.check(cuda.call.cuCtxPushCurrent(cuda.context()), "use the GPU's context");
}

CudaScope::~CudaScope() {
  CUcontext ours = nullptr;
  cuda_.call.cuCtxPopCurrent(&ours);
}

CudaMemory::~CudaMemory() { free(); }

void CudaMemory::free() {
  if (host_ != nullptr) cuda_->call.cuMemFreeHost(host_);
  if (device_ != 0) cuda_->call.cuMemFree(device_);
  host_ = nullptr;
  device_ = 0;
  size_ = 0;
}

bool CudaMemory::grow(std::size_t size) {
  if (size <= size_) return false;
  free();
  if (is_pinned_) {
    cuda_->check(cuda_->call.cuMemHostAlloc(&host_, size, 0), "pin memory");
  } else {
    cuda_->check(cuda_->call.cuMemAlloc(&device_, size), "reserve memory");
  }
  size_ = size;
  return true;
}

CudaStream::CudaStream(CudaPointer cuda) : cuda_(std::move(cuda)) {
  cuda_->check(cuda_->call.cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING), "make a stream");
}

CudaStream::~CudaStream() { cuda_->call.cuStreamDestroy(stream_); }

void CudaStream::upload(const CudaMemory& from, const CudaMemory& to, std::size_t size) const {
  cuda_->check(cuda_->call.cuMemcpyHtoDAsync(to.device(), from.data(), size, stream_),
               "copy to the GPU");
}

void CudaStream::download(const CudaMemory& from, const CudaMemory& to, std::size_t size) const {
  cuda_->check(cuda_->call.cuMemcpyDtoHAsync(to.data(), from.device(), size, stream_),
               "copy from the GPU");
}

void CudaStream::wait() const {
  cuda_->check(cuda_->call.cuStreamSynchronize(stream_), "finish its work");
}

}  // namespace segdeploy
