// NVIDIA's runtime, TensorRT or TensorRT-RTX, opened at run time.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "library.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// What TensorRT says, kept for a message of ours.
class TensorRtLog final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override;
  // The errors since the last call; "no reason given" without any.
  std::string reason();

 private:
  std::mutex mutex_;
  std::vector<std::string> errors_;
};

// TensorRT's tables of functions differ between families: headers 10 fit TensorRT 10 and RTX 1.0 to
// 1.4, headers 11 fit TensorRT 11 and RTX from 1.5. A library of another family would answer with
// garbage, or crash, so its version is asked by plain functions first.
class TensorRtLibrary {
 public:
  // `backend` is tensorrt or tensorrt-rtx. Throws Error for a library of another family.
  TensorRtLibrary(const std::string& backend, const Options& options);

  const std::string& version() const { return version_; }
  // Whether ICudaEngine's table is the headers', too: RTX 1.0 to 1.4 lack two functions of it, so
  // that all behind createExecutionContext lie elsewhere there.
  bool describes_engines() const { return !is_early_rtx_; }

  // Reads a plan; `what` names it in an error. Throws Error with TensorRT's reason.
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
