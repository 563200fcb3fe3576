#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "contract.hpp"
#include "labels.hpp"
#include "preprocess.hpp"
#include "segdeploy/segdeploy.hpp"
#include "segdeploy/segdeploy_c.h"

struct segdeploy_model {
  segdeploy::Model model;
};

// A contract with the state of its preprocessing and postprocessing. Only one thread may use it at
// a time.
struct segdeploy_contract {
  explicit segdeploy_contract(const char* json)
      : contract(segdeploy::read_contract(json, "the contract")), preprocessor(contract) {}

  segdeploy::Contract contract;
  segdeploy::Preprocessor preprocessor;
  segdeploy::Prepared prepared;
  segdeploy::Labeller labeller;
};

namespace {

// Return the buffer of the thread's last error message. Its size is fixed, because out of memory is
// one of the errors.
char* last_error() {
  thread_local char message[2048] = "";
  return message;
}

void keep(const char* message) noexcept { std::snprintf(last_error(), 2048, "%s", message); }

// Run `call`. If it throws, keep the message as the thread's last error, and return `failed`.
template <typename Result, typename Call>
Result guarded(Result failed, Call call) noexcept {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    keep("out of memory; give a smaller image, or run fewer calls at once");
  } catch (const std::exception& error) {
    keep(error.what());
  } catch (...) {
    keep("an unknown failure");
  }
  return failed;
}

}  // namespace

extern "C" {

segdeploy_model* segdeploy_open(const char* path, const segdeploy_options* options) {
  return guarded<segdeploy_model*>(nullptr, [&] {
    if (path == nullptr) throw segdeploy::Error("segdeploy_open: the path is null");
    segdeploy::Options asked;
    if (options != nullptr) {
      if (options->library != nullptr) asked.onnxruntime = asked.tensorrt = options->library;
      if (options->provider != nullptr) asked.provider = options->provider;
      asked.threads = options->threads;
      if (options->contexts != 0) asked.contexts = options->contexts;
    }
    return new segdeploy_model{segdeploy::Model(path, asked)};
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
    model->model.predict(image, labels);
    return 0;
  });
}

int segdeploy_enqueue(const segdeploy_model* model, const void* input, void* output, void* stream) {
  return guarded(1, [&] {
    if (model == nullptr) throw segdeploy::Error("segdeploy_enqueue: the model is null");
    model->model.enqueue(input, output, stream);
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

int segdeploy_height(const segdeploy_model* model) {
  return model == nullptr ? 0 : model->model.height();
}

int segdeploy_width(const segdeploy_model* model) {
  return model == nullptr ? 0 : model->model.width();
}

segdeploy_contract* segdeploy_contract_open(const char* json) {
  return guarded<segdeploy_contract*>(nullptr, [&] {
    if (json == nullptr) throw segdeploy::Error("segdeploy_contract_open: the text is null");
    return new segdeploy_contract(json);
  });
}

void segdeploy_contract_close(segdeploy_contract* contract) { delete contract; }

int segdeploy_prepare(segdeploy_contract* contract, const uint8_t* rgb, int height, int width,
                      void* input) {
  return guarded(1, [&] {
    if (contract == nullptr || input == nullptr) {
      throw segdeploy::Error("segdeploy_prepare: the contract or the input is null");
    }
    auto& prepared = contract->prepared;
    contract->preprocessor.run({rgb, height, width}, prepared);
    if (contract->contract.takes_bytes) {
      std::memcpy(input, prepared.bytes.data(), prepared.bytes.size());
    } else {
      std::memcpy(input, prepared.floats.data(), prepared.floats.size() * sizeof(float));
    }
    return 0;
  });
}

int segdeploy_label(segdeploy_contract* contract, const float* scores, int map_height,
                    int map_width, int height, int width, uint8_t* labels) {
  return guarded(1, [&] {
    if (contract == nullptr || scores == nullptr || labels == nullptr) {
      throw segdeploy::Error("segdeploy_label: the contract, the scores or the labels are null");
    }
    if (map_height < 1 || map_width < 1 || height < 1 || width < 1) {
      throw segdeploy::Error("segdeploy_label: a size is not positive");
    }
    segdeploy::label_scores(
        contract->contract,
        {scores, static_cast<int>(contract->contract.classes.size()), map_height, map_width},
        height, width, contract->labeller, labels);
    return 0;
  });
}

const char* segdeploy_error(void) { return last_error(); }
const char* segdeploy_version(void) { return segdeploy::version(); }

}  // extern "C"
