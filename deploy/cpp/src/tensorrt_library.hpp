// NVIDIA's inference runtime, TensorRT or TensorRT-RTX, loaded at run time.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "library.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// Keeps TensorRT's error messages for the messages of segdeploy.
class TensorRtLog final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override;
  // Return the errors since the last call, or "no reason given" if there are none.
  std::string reason();

 private:
  std::mutex mutex_;
  std::vector<std::string> errors_;
};

// TensorRT's function tables differ between families. Headers 10 fit TensorRT 10 and TensorRT-RTX
// 1.0 to 1.4. Headers 11 fit TensorRT 11 and TensorRT-RTX 1.5 and later. A library of another
// family would return garbage or crash, so its version is first read through plain C functions.
class TensorRtLibrary {
 public:
  // `backend` is tensorrt or tensorrt-rtx. Throws Error for a library of another family.
  TensorRtLibrary(const std::string& backend, const Options& options);

  const std::string& version() const { return version_; }
  // Return whether the function table of ICudaEngine matches the headers. TensorRT-RTX 1.0 to 1.4
  // lack two of its functions, so that all functions after createExecutionContext are shifted.
  bool describes_engines() const { return !is_early_rtx_; }

  // Deserialize a plan. `what` names it in an error message. Throws Error with TensorRT's reason.
  std::unique_ptr<nvinfer1::ICudaEngine> read(const std::string& plan, bool with_host_code,
                                              const std::string& what);
  TensorRtLog& log() const { return *log_; }

 private:
  Library library_;
  std::string backend_;
  std::string version_;
  bool is_early_rtx_ = false;
  std::unique_ptr<TensorRtLog> log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;  // outlives its engines
};

}  // namespace segdeploy
