#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "backend.hpp"
#include "half.hpp"
#include "library.hpp"

namespace segdeploy {
namespace {

constexpr const char* kContractKey = "segdeploy.contract";
constexpr const char* kRejectedKey = "segdeploy.rejected";
constexpr std::size_t kMaxReason = 300;
constexpr const char* kAdvice =
    "give the path of ONNX Runtime's library in SEGDEPLOY_ONNXRUNTIME or Options::onnxruntime";

// Load ONNX Runtime, and return its version. Its function table is global to the process, so the
// first library that is opened stays.
const std::string& runtime_version(const Options& options) {
  static std::mutex opening;
  static std::optional<std::string> version;
  static std::string opened;
  const std::lock_guard<std::mutex> lock(opening);
  const char* value = std::getenv("SEGDEPLOY_ONNXRUNTIME");
  std::string name = options.onnxruntime;
  if (name.empty()) name = value != nullptr && *value != '\0' ? value : "libonnxruntime.so.1";
  if (version) {
    if (name != opened) {
      throw Error(name + ": a process has one ONNX Runtime, and this one opened " + opened +
                  " before; give the same library to every model");
    }
    return *version;
  }
  const Library library(name, kAdvice);
  const auto* base = library.symbol<const OrtApiBase* (*)()>("OrtGetApiBase")();
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    throw Error(name + ": is ONNX Runtime " + base->GetVersionString() +
                ", and this library needs one with API " + std::to_string(ORT_API_VERSION) +
                " (1." + std::to_string(ORT_API_VERSION) + " or later)");
  }
  Ort::InitApi(api);
  version = base->GetVersionString();
  opened = name;
  return *version;
}

// Add an execution provider. Nodes that the provider does not support run on the CPU.
void add_provider(Ort::SessionOptions& settings, const std::string& provider) {
  const OrtApi& api = Ort::GetApi();
  if (provider.empty() || provider == "cpu") return;
  if (provider == "cuda") {
    OrtCUDAProviderOptionsV2* made = nullptr;
    Ort::ThrowOnError(api.CreateCUDAProviderOptions(&made));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api.ReleaseCUDAProviderOptions)> held(
        made, api.ReleaseCUDAProviderOptions);
    settings.AppendExecutionProvider_CUDA_V2(*held);
  } else if (provider == "tensorrt") {
    OrtTensorRTProviderOptionsV2* made = nullptr;
    Ort::ThrowOnError(api.CreateTensorRTProviderOptions(&made));
    const std::unique_ptr<OrtTensorRTProviderOptionsV2,
                          decltype(api.ReleaseTensorRTProviderOptions)>
        held(made, api.ReleaseTensorRTProviderOptions);
    settings.AppendExecutionProvider_TensorRT_V2(*held);
  } else {
    throw Error(provider + ": no such provider of ONNX Runtime; there are cpu, cuda and tensorrt");
  }
}

class OnnxRuntime final : public Backend {
 public:
  OnnxRuntime(const std::string& path, const Options& options)
      : version_(runtime_version(options)),
        provider_(options.provider.empty() ? "cpu" : options.provider),
        path_(path),
        environment_(ORT_LOGGING_LEVEL_ERROR) {
    try {
      Ort::SessionOptions settings;
      // These optimizers change results beyond rounding. calibration/session.py disables the same
      // optimizers, and gives the reasons.
      settings.AddConfigEntry("optimization.disable_specified_optimizers",
                              "WeightBiasQuantization;DoubleQDQPairsRemover");
      if (options.threads > 0) settings.SetIntraOpNumThreads(options.threads);
      add_provider(settings, options.provider);
      session_ = Ort::Session(environment_, path.c_str(), settings);
      memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
      read_contract_of_file();
      check_io();
    } catch (const Ort::Exception& error) {
      throw Error(path + ": ONNX Runtime cannot load it (" + error.what() + ")");
    }
  }

  const Contract& contract() const override { return contract_; }
  std::string name() const override {
    return "onnxruntime " + version_ + (provider_ == "cpu" ? "" : " (" + provider_ + ")");
  }

  bool takes_any_size() const override { return takes_any_size_; }

  bool takes_batches() const override { return takes_batches_; }

  void run(const Input& input, Reader& reader) const override {
    const std::int64_t count = input.shape[0], height = input.shape[1], width = input.shape[2];
    const std::int64_t floats[] = {count, 3, height, width};
    const std::int64_t bytes[] = {count, height, width, 3};
    const bool is_bytes = contract_.takes_bytes;
    const void* data = input.data;
    std::size_t size = input.values() * (is_bytes ? 1 : sizeof(float));
    thread_local std::vector<std::uint16_t> halves;
    thread_local std::vector<float> widened;
    if (fed_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) {
      halves.resize(input.values());
      to_half(static_cast<const float*>(input.data), halves.data(), halves.size());
      data = halves.data();
      size = halves.size() * sizeof halves[0];
    }
    const char* inputs[] = {input_.c_str()};
    const char* outputs[] = {output_.c_str()};
    try {
      const Ort::Value tensor = Ort::Value::CreateTensor(memory_, const_cast<void*>(data), size,
                                                         is_bytes ? bytes : floats, 4, fed_);
      Ort::Value found{nullptr};  // allocated by the runtime
      // Session::Run is thread-safe and does not change the session, but it is not const.
      auto& session = const_cast<Ort::Session&>(session_);
      session.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, &found, 1);
      const auto information = found.GetTensorTypeAndShapeInfo();
      OutputView view;
      view.sides = information.GetDimensionsCount();
      if (view.sides > view.shape.size()) {
        throw Error(path_ + ": gave " + std::to_string(view.sides) + " dimensions");
      }
      // The wrapper's method returns a vector, which would allocate.
      Ort::ThrowOnError(Ort::GetApi().GetDimensions(information, view.shape.data(), view.sides));
      if (contract_.gives_labels()) {
        view.labels = found.GetTensorData<std::uint8_t>();
      } else if (given_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) {
        widened.resize(information.GetElementCount());
        from_half(static_cast<const std::uint16_t*>(found.GetTensorRawData()), widened.data(),
                  widened.size());
        view.scores = widened.data();
      } else {
        view.scores = found.GetTensorData<float>();
      }
      reader.read(view);
    } catch (const Ort::Exception& error) {
      throw Error(path_ + ": ONNX Runtime cannot run it (" + error.what() + ")");
    }
  }

 private:
  void read_contract_of_file() {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto metadata = session_.GetModelMetadata();
    if (const auto reason = metadata.LookupCustomMetadataMapAllocated(kRejectedKey, allocator)) {
      throw Error(path_ +
                  ": failed its proof when it was exported, and is kept to be looked at alone (" +
                  std::string(reason.get()).substr(0, kMaxReason) +
                  "); mend the network, and export again");
    }
    const auto text = metadata.LookupCustomMetadataMapAllocated(kContractKey, allocator);
    if (text == nullptr) {
      throw Error(path_ +
                  ": carries no segdeploy contract (classes, mean, std, size); export it with "
                  "`segdeploy export`, or state one with `segdeploy adopt`");
    }
    contract_ = read_contract(text.get(), path_);
    if (session_.GetInputCount() != 1 || session_.GetOutputCount() != 1) {
      throw Error(path_ + ": has " + std::to_string(session_.GetInputCount()) + " inputs and " +
                  std::to_string(session_.GetOutputCount()) + " outputs, not one of each");
    }
    input_ = session_.GetInputNameAllocated(0, allocator).get();
    output_ = session_.GetOutputNameAllocated(0, allocator).get();
  }

  static Sides sides_of(const Ort::ConstTensorTypeAndShapeInfo& tensor) {
    const auto sizes = tensor.GetShape();
    std::vector<const char*> names(sizes.size());
    tensor.GetSymbolicDimensions(names.data(), names.size());
    Sides sides;
    for (std::size_t at = 0; at < sizes.size(); ++at) {
      const bool is_named = names[at] != nullptr && *names[at] != '\0';
      sides.push_back({sizes[at], is_named ? names[at] : "any"});
    }
    return sides;
  }

  void check_io() {
    const auto given = session_.GetOutputTypeInfo(0);
    const auto taken = session_.GetInputTypeInfo(0);
    if (given.GetONNXType() != ONNX_TYPE_TENSOR || taken.GetONNXType() != ONNX_TYPE_TENSOR) {
      throw Error(path_ + ": its input or output is no tensor; export it again");
    }
    given_ = given.GetTensorTypeAndShapeInfo().GetElementType();
    fed_ = taken.GetTensorTypeAndShapeInfo().GetElementType();
    segdeploy::check_tensors(path_, contract_, sides_of(taken.GetTensorTypeAndShapeInfo()),
                             sides_of(given.GetTensorTypeAndShapeInfo()));
    const auto sides = taken.GetTensorTypeAndShapeInfo().GetShape();
    takes_batches_ = sides[0] < 0;
    takes_any_size_ = sides[contract_.takes_bytes ? 1 : 2] < 0;
    const auto fits = [](ONNXTensorElementDataType type, bool is_bytes) {
      if (is_bytes) return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
      return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ||
             type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    };
    if (!fits(given_, contract_.gives_labels()) || !fits(fed_, contract_.takes_bytes)) {
      throw Error(path_ +
                  ": its input or output has another type than its contract says; export it "
                  "again");
    }
  }

  std::string version_;
  std::string provider_;
  std::string path_;
  Ort::Env environment_;
  Ort::Session session_{nullptr};
  Ort::MemoryInfo memory_{nullptr};
  Contract contract_;
  std::string input_;
  std::string output_;
  ONNXTensorElementDataType fed_{}, given_{};
  bool takes_batches_ = false;
  bool takes_any_size_ = false;
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const std::string& path, const Options& options) {
  return std::make_unique<OnnxRuntime>(path, options);
}

}  // namespace segdeploy
