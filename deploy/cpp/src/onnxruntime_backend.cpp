#include <cstdlib>
#include <mutex>
#include <optional>
#include <utility>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "backend.hpp"
#include "library.hpp"

namespace segdeploy {
namespace {

constexpr const char* kContractKey = "segdeploy.contract";
constexpr const char* kAdvice =
    "give the path of ONNX Runtime's library in SEGDEPLOY_ONNXRUNTIME or Options::onnxruntime";

// ONNX Runtime's table of functions is one for the whole process: the first library that is opened
// stays.
const std::string& runtime_version(const Options& options) {
  static std::mutex opening;
  static std::optional<std::string> version;
  const std::lock_guard<std::mutex> lock(opening);
  if (version) return *version;
  const char* told = std::getenv("SEGDEPLOY_ONNXRUNTIME");
  std::string name = options.onnxruntime;
  if (name.empty()) name = told != nullptr && *told != '\0' ? told : "libonnxruntime.so.1";
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
  return *version;
}

class OnnxRuntime final : public Backend {
 public:
  OnnxRuntime(const std::string& path, const Options& options)
      : version_(runtime_version(options)), path_(path), environment_(ORT_LOGGING_LEVEL_ERROR) {
    try {
      Ort::SessionOptions settings;
      if (options.threads > 0) settings.SetIntraOpNumThreads(options.threads);
      session_ = Ort::Session(environment_, path.c_str(), settings);
      memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
      read_contract_of_file();
      check_tensors();
    } catch (const Ort::Exception& error) {
      throw Error(path + ": ONNX Runtime cannot load it (" + error.what() + ")");
    }
  }

  const Contract& contract() const override { return contract_; }
  std::string name() const override { return "onnxruntime " + version_; }

  void run(const void* input, Reader& reader) const override {
    const std::size_t values = static_cast<std::size_t>(contract_.height) *
                               static_cast<std::size_t>(contract_.width) * 3;
    const std::int64_t height = contract_.height;
    const std::int64_t width = contract_.width;
    const std::int64_t floats[] = {1, 3, height, width};
    const std::int64_t bytes[] = {1, height, width, 3};
    const bool is_bytes = contract_.takes_bytes;
    const char* inputs[] = {input_.c_str()};
    const char* outputs[] = {output_.c_str()};
    try {
      const Ort::Value tensor = Ort::Value::CreateTensor(
          memory_, const_cast<void*>(input), values * (is_bytes ? 1 : sizeof(float)),
          is_bytes ? bytes : floats, 4,
          is_bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
      Ort::Value found{nullptr};  // the runtime makes it
      // Running does not change a session, and several threads may: its method is not const.
      auto& session = const_cast<Ort::Session&>(session_);
      session.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, &found, 1);
      const auto information = found.GetTensorTypeAndShapeInfo();
      OutputView view;
      view.sides = information.GetDimensionsCount();
      if (view.sides > view.shape.size()) {
        throw Error(path_ + ": gave " + std::to_string(view.sides) + " dimensions");
      }
      // The wrapper's own call gives a vector, and would allocate.
      Ort::ThrowOnError(
          Ort::GetApi().GetDimensions(information, view.shape.data(), view.sides));
      if (gives_labels_) {
        view.labels = found.GetTensorData<std::uint8_t>();
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
    const auto text = metadata.LookupCustomMetadataMapAllocated(kContractKey, allocator);
    if (text == nullptr) {
      throw Error(path_ + ": has no segdeploy contract; export it with segdeploy, or adopt it");
    }
    contract_ = read_contract(text.get(), path_);
    if (session_.GetInputCount() != 1 || session_.GetOutputCount() != 1) {
      throw Error(path_ + ": has " + std::to_string(session_.GetInputCount()) + " inputs and " +
                  std::to_string(session_.GetOutputCount()) + " outputs, not one of each");
    }
    input_ = session_.GetInputNameAllocated(0, allocator).get();
    output_ = session_.GetOutputNameAllocated(0, allocator).get();
  }

  // A contract that does not fit its graph would be read beyond its memory.
  void check_tensors() {
    const auto given = session_.GetOutputTypeInfo(0);
    const auto taken = session_.GetInputTypeInfo(0);
    const auto type = given.GetTensorTypeAndShapeInfo().GetElementType();
    gives_labels_ = contract_.output == Output::labels && contract_.upsampling == Upsampling::none;
    const auto wanted =
        gives_labels_ ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    const auto fed = contract_.takes_bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                                           : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    if (type != wanted || taken.GetTensorTypeAndShapeInfo().GetElementType() != fed) {
      throw Error(path_ + ": its input or output has another type than its contract says; export it "
                          "again");
    }
  }

  std::string version_;
  std::string path_;
  Ort::Env environment_;
  Ort::Session session_{nullptr};
  Ort::MemoryInfo memory_{nullptr};
  Contract contract_;
  std::string input_;
  std::string output_;
  bool gives_labels_ = false;
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const std::string& path, const Options& options) {
  return std::make_unique<OnnxRuntime>(path, options);
}

}  // namespace segdeploy
