#include "tensorrt_library.hpp"

#include <cstdint>
#include <cstdlib>
#include <utility>

namespace segdeploy {
namespace {

// TensorRT-RTX has its own version numbers, both in its headers and in its library.
constexpr int family_of(int major, int minor) {
  return major == 1 ? (minor >= 5 ? 11 : 10) : major;
}
constexpr std::uintptr_t kLowestAddress = 1 << 16;  // lower addresses are never mapped
constexpr int kFamily = family_of(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);

bool is_rtx(const std::string& backend) { return backend == "tensorrt-rtx"; }

const char* variable_of(const std::string& backend) {
  return is_rtx(backend) ? "SEGDEPLOY_TENSORRT_RTX" : "SEGDEPLOY_TENSORRT";
}

std::string name_of(const std::string& backend, const Options& options) {
  if (!options.tensorrt.empty()) return options.tensorrt;
  const char* value = std::getenv(variable_of(backend));
  if (value != nullptr && *value != '\0') return value;
  return is_rtx(backend) ? "libtensorrt_rtx.so.1" : "libnvinfer.so." + std::to_string(kFamily);
}

std::string advice(const std::string& backend) {
  return std::string("give the path of its library in ") + variable_of(backend) +
         " or Options::tensorrt";
}

std::string known(const std::string& backend) {
  if (!is_rtx(backend)) return "TensorRT " + std::to_string(kFamily);
  return kFamily == 10 ? "TensorRT-RTX 1.0 to 1.4" : "TensorRT-RTX 1.5 and later";
}

}  // namespace

void TensorRtLog::log(Severity severity, const char* message) noexcept {
  if (severity > Severity::kERROR) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  try {
    if (errors_.size() < 2) errors_.emplace_back(message);
  } catch (...) {  // out of memory: drop the message
  }
}

std::string TensorRtLog::reason() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string text;
  for (const auto& error : errors_) text += (text.empty() ? "" : "; ") + error;
  errors_.clear();
  return text.empty() ? "no reason given" : text;
}

TensorRtLibrary::TensorRtLibrary(const std::string& backend, const Options& options)
    : library_(name_of(backend, options), advice(backend)),
      backend_(backend),
      log_(std::make_unique<TensorRtLog>()) {
  const auto ask = [&](const char* name) { return library_.symbol<std::int32_t (*)()>(name)(); };
  const int major = ask("getInferLibMajorVersion");
  const int minor = ask("getInferLibMinorVersion");
  version_ = std::to_string(major) + "." + std::to_string(minor) + "." +
             std::to_string(ask("getInferLibPatchVersion")) + "." +
             std::to_string(ask("getInferLibBuildVersion"));
  const bool is_rtx_library = major == 1;
  const int family = family_of(major, minor);
  is_early_rtx_ = is_rtx_library && family == 10;
  if (is_rtx_library != is_rtx(backend) || family != kFamily) {
    throw Error(name_of(backend, options) + ": is " +
                (is_rtx_library ? "TensorRT-RTX " : "TensorRT ") + version_ +
                ", and this library was compiled for " + known(backend) +
                ", whose functions lie elsewhere; " + advice(backend) +
                ", or compile it with the headers of that one (TENSORRT_ROOT)");
  }
}

std::unique_ptr<nvinfer1::ICudaEngine> TensorRtLibrary::read(const std::string& plan,
                                                             bool with_host_code,
                                                             const std::string& what) {
  using Create = void* (*)(void*, std::int32_t);
  const auto create = library_.symbol<Create>("createInferRuntime_INTERNAL");
  // If CUDA cannot start, TensorRT 10.15 to 11.4 return a small number instead of null. Every use
  // of that pointer crashes, including its deletion, so it is checked before it gets an owner.
  void* const made = create(log_.get(), NV_TENSORRT_VERSION);
  if (reinterpret_cast<std::uintptr_t>(made) < kLowestAddress) {
    throw Error(what + ": " + backend_ + " " + version_ + " makes no runtime here (" +
                log_->reason() + "); `segdeploy doctor` looks at the driver");
  }
  runtime_.reset(static_cast<nvinfer1::IRuntime*>(made));
  runtime_->setEngineHostCodeAllowed(with_host_code);
  log_->reason();
  std::unique_ptr<nvinfer1::ICudaEngine> engine(
      runtime_->deserializeCudaEngine(plan.data(), plan.size()));
  if (!engine) {
    throw Error(what + ": " + backend_ + " " + version_ + " cannot open it (" + log_->reason() +
                "); `segdeploy doctor` looks at the driver");
  }
  return engine;
}

}  // namespace segdeploy
