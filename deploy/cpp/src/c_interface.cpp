#include <algorithm>
#include <exception>
#include <string>

#include "segdeploy/segdeploy.hpp"
#include "segdeploy/segdeploy_c.h"

struct segdeploy_model {
  segdeploy::Model model;
};

namespace {

std::string& last_error() {
  thread_local std::string message;
  return message;
}

// Runs `call`; what it throws becomes the thread's error, and `failed` the result.
template <typename Result, typename Call>
Result guarded(Result failed, Call call) noexcept {
  try {
    return call();
  } catch (const std::exception& error) {
    last_error() = error.what();
  } catch (...) {
    last_error() = "an unknown failure";
  }
  return failed;
}

}  // namespace

extern "C" {

segdeploy_model* segdeploy_open(const char* path, const char* onnxruntime, int threads) {
  return guarded<segdeploy_model*>(nullptr, [&] {
    if (path == nullptr) throw segdeploy::Error("segdeploy_open: the path is null");
    segdeploy::Options options;
    if (onnxruntime != nullptr) options.onnxruntime = onnxruntime;
    options.threads = threads;
    return new segdeploy_model{segdeploy::Model(path, options)};
  });
}

void segdeploy_close(segdeploy_model* model) { delete model; }

int segdeploy_predict(const segdeploy_model* model, const uint8_t* data, int height, int width,
                      size_t stride, enum segdeploy_format format, uint8_t* labels) {
  return guarded(1, [&] {
    if (model == nullptr || labels == nullptr) {
      throw segdeploy::Error("segdeploy_predict: the model or the labels are null");
    }
    const segdeploy::ImageView image{data, height, width, stride,
                                     static_cast<segdeploy::Format>(format)};
    thread_local segdeploy::Labels found;
    model->model.predict(image, found);
    std::copy(found.data.begin(), found.data.end(), labels);
    return 0;
  });
}

int segdeploy_classes(const segdeploy_model* model) {
  return model == nullptr ? 0 : static_cast<int>(model->model.classes().size());
}

const char* segdeploy_class(const segdeploy_model* model, int id) {
  if (id < 0 || id >= segdeploy_classes(model)) return nullptr;
  return model->model.classes()[static_cast<std::size_t>(id)].c_str();
}

const char* segdeploy_error(void) { return last_error().c_str(); }
const char* segdeploy_version(void) { return segdeploy::version(); }

}  // extern "C"
