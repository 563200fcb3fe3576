#include "gpu_processing.hpp"

#include <cstring>
#include <utility>

#ifdef SEGDEPLOY_KERNELS
extern const unsigned char segdeploy_kernels[];
#endif

namespace segdeploy {
namespace {

constexpr unsigned kThreads = 256;
constexpr int kRow = 1;

}  // namespace

KernelsPointer Kernels::load(const CudaPointer& cuda) {
#ifdef SEGDEPLOY_KERNELS
  std::shared_ptr<Kernels> kernels(new Kernels(cuda));
  if (cuda->call.cuModuleLoadData(&kernels->module_, segdeploy_kernels) != CUDA_SUCCESS ||
      !kernels->find_all()) {
    return nullptr;
  }
  return kernels;
#else
  static_cast<void>(cuda);
  return nullptr;
#endif
}

bool Kernels::find_all() {
  const std::pair<CUfunction*, const char*> names[] = {
      {&resize_columns, "resize_columns"},
      {&resize_rows, "resize_rows"},
      {&normalize, "normalize"},
      {&reorder, "reorder"},
      {&find_not_finite, "find_not_finite"},
      {&best_classes, "best_classes"},
      {&best_classes_of_low_resolution, "best_classes_of_low_resolution"},
      {&nearest, "nearest"},
  };
  for (const auto& [function, name] : names) {
    if (cuda_->call.cuModuleGetFunction(function, module_, name) != CUDA_SUCCESS) return false;
  }
  return true;
}

Kernels::~Kernels() {
  if (module_ != nullptr) cuda_->call.cuModuleUnload(module_);
}

void Kernels::start(CUfunction kernel, const CudaStream& stream, std::size_t columns, int rows,
                    void** arguments) const {
  const auto blocks = static_cast<unsigned>((columns + kThreads - 1) / kThreads);
  cuda_->check(cuda_->call.cuLaunchKernel(kernel, blocks, static_cast<unsigned>(rows), 1, kThreads,
                                          1, 1, 0, stream.get(), arguments, nullptr),
               "start a kernel");
}

GpuProcessor::GpuProcessor(CudaPointer cuda, KernelsPointer kernels, const Contract& contract)
    : cuda_(std::move(cuda)), kernels_(std::move(kernels)), contract_(contract) {
  for (auto* one : {&host_image_, &host_labels_, &host_flag_}) *one = memory(true);
  for (auto* one : {&table_, &image_, &between_, &resized_, &labels_, &flag_, &across_.taps,
                    &across_.weights, &down_.taps, &down_.weights}) {
    *one = memory(false);
  }
  host_flag_->grow(sizeof(int));
  flag_->grow(sizeof(int));
}

std::unique_ptr<CudaMemory> GpuProcessor::memory(bool is_pinned) const {
  return std::make_unique<CudaMemory>(cuda_, is_pinned);
}

void GpuProcessor::upload_axis(Axis& axis, int from, int to, const CudaStream& stream) {
  if (!axis.filter.prepare(from, to)) return;
  const auto put = [&](const auto& values, CudaMemory& memory) {
    const std::size_t size = values.size() * sizeof values[0];
    memory.grow(size);
    // `values` is not in pinned memory, so the driver has read it when the call returns.
    cuda_->check(cuda_->call.cuMemcpyHtoDAsync(memory.device(), values.data(), size, stream.get()),
                 "copy to the GPU");
  };
  put(axis.filter.taps, *axis.taps);
  put(axis.filter.weights, *axis.weights);
}

// Upload an image, and resize it to the network's input size. Returns its bytes in device memory.
CUdeviceptr GpuProcessor::resized(const ImageView& image, const CudaStream& stream) {
  const int height = image.height, width = image.width;
  const int to_height = contract_.height, to_width = contract_.width;
  const std::size_t size = area(height, width) * 3;
  host_image_->grow(size);
  image_->grow(size);
  gather(image, static_cast<std::uint8_t*>(host_image_->data()));
  stream.upload(*host_image_, *image_, size);
  const auto columns = [&](CUdeviceptr source, int rows, CUdeviceptr target) {
    upload_axis(across_, width, to_width, stream);
    kernels_->run(kernels_->resize_columns, stream, static_cast<std::size_t>(to_width) * 3, rows,
                  source, rows, width, target, to_width, across_.taps->device(),
                  across_.weights->device());
  };
  const auto rows = [&](CUdeviceptr source, int wide, CUdeviceptr target) {
    upload_axis(down_, height, to_height, stream);
    kernels_->run(kernels_->resize_rows, stream, static_cast<std::size_t>(wide) * 3, to_height,
                  source, wide, target, to_height, down_.taps->device(), down_.weights->device());
  };
  if (height == to_height && width == to_width) return image_->device();
  resized_->grow(area(to_height, to_width) * 3);
  if (height == to_height) {
    columns(image_->device(), height, resized_->device());
  } else if (width == to_width) {
    rows(image_->device(), width, resized_->device());
  } else if (is_down_first(height, width, to_height, to_width)) {
    between_->grow(area(to_height, width) * 3);
    rows(image_->device(), width, between_->device());
    columns(between_->device(), to_height, resized_->device());
  } else {
    between_->grow(area(height, to_width) * 3);
    columns(image_->device(), height, between_->device());
    rows(between_->device(), to_width, resized_->device());
  }
  return resized_->device();
}

void GpuProcessor::prepare(const ImageView& image, const CudaStream& stream, CUdeviceptr input) {
  check_view(image);
  const CUdeviceptr bytes = resized(image, stream);
  const int pixels = contract_.height * contract_.width;
  const int is_bgr = contract_.is_bgr ? 1 : 0;
  if (contract_.takes_bytes) {
    kernels_->run(kernels_->reorder, stream, static_cast<std::size_t>(pixels), kRow, bytes, pixels,
                  is_bgr, input);
    return;
  }
  if (table_->grow(sizeof(NormalizedBytes))) {  // for the first image
    const NormalizedBytes values = normalized_bytes(contract_);
    cuda_->check(
        cuda_->call.cuMemcpyHtoDAsync(table_->device(), values.data(), sizeof values, stream.get()),
        "copy to the GPU");
  }
  kernels_->run(kernels_->normalize, stream, static_cast<std::size_t>(pixels), kRow, bytes, pixels,
                is_bgr, table_->device(), input);
}

bool GpuProcessor::label(const ImageView& image, const CudaStream& stream, CUdeviceptr output,
                         int height, int width, std::uint8_t* labels) {
  const std::size_t size = area(image.height, image.width);
  const auto columns = static_cast<std::size_t>(image.width);
  const int classes = static_cast<int>(contract_.classes.size());
  labels_->grow(size);
  host_labels_->grow(size);
  cuda_->check(cuda_->call.cuMemsetD8Async(flag_->device(), 0, sizeof(int), stream.get()),
               "clear memory");
  if (contract_.gives_labels()) {
    kernels_->run(kernels_->nearest, stream, columns, image.height, output, height, width,
                  labels_->device(), image.height, image.width);
  } else {
    const unsigned long long count = area(height, width) * static_cast<std::size_t>(classes);
    kernels_->run(kernels_->find_not_finite, stream, count / 16 + 1, kRow, output, count,
                  flag_->device());
    if (contract_.upsampling == Upsampling::none) {
      kernels_->run(kernels_->best_classes, stream, columns, image.height, output, classes, height,
                    width, labels_->device(), image.height, image.width);
    } else {
      const int align_corners = contract_.upsampling == Upsampling::align_corners ? 1 : 0;
      kernels_->run(kernels_->best_classes_of_low_resolution, stream, columns, image.height, output,
                    classes, height, width, contract_.height, contract_.width, align_corners,
                    labels_->device(), image.height, image.width);
    }
  }
  stream.download(*labels_, *host_labels_, size);
  stream.download(*flag_, *host_flag_, sizeof(int));
  stream.wait();
  if (*static_cast<const int*>(host_flag_->data()) != 0) return false;
  std::memcpy(labels, host_labels_->data(), size);
  return true;
}

}  // namespace segdeploy
