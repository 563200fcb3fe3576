#include <cmath>
#include <fstream>
#include <utility>

#include "backend.hpp"
#include "labels.hpp"
#include "preprocess.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {
namespace {

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::unique_ptr<Backend> open(const std::string& path, const Options& options) {
  if (!std::ifstream(path)) throw Error(path + ": no such file");
  if (ends_with(path, ".onnx")) return open_onnxruntime(path, options);
  throw Error(path + ": is no .onnx file, and this library was built without TensorRT");
}

std::string told(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const auto side : shape) text += (text.empty() ? "" : "x") + std::to_string(side);
  return text;
}

}  // namespace

struct Model::Impl {
  Impl(const std::string& given, const Options& options)
      : path(given), backend(open(given, options)), preprocessor(backend->contract()) {}

  void read(const OutputView& output, const ImageView& image, Labels& labels) const {
    const Contract& contract = backend->contract();
    labels.height = image.height;
    labels.width = image.width;
    const std::size_t sides = output.shape.size();
    const bool has_scores = output.scores != nullptr;
    const auto count = static_cast<std::int64_t>(contract.classes.size());
    if (sides != (has_scores ? 4U : 3U) || output.shape[0] != 1 ||
        (has_scores && output.shape[1] != count)) {
      throw Error(path + ": gave " + told(output.shape) + ", which its contract does not say");
    }
    const int height = static_cast<int>(output.shape[sides - 2]);
    const int width = static_cast<int>(output.shape[sides - 1]);
    if (!has_scores) {
      resize_nearest(output.labels, height, width, image.height, image.width, labels.data);
      return;
    }
    const Scores scores{output.scores, static_cast<int>(count), height, width};
    check_finite(scores);
    if (contract.upsampling == Upsampling::none) {
      best_classes(scores, image.height, image.width, labels.data);
      return;
    }
    std::vector<std::uint8_t> small;
    best_classes_of_small_map(scores, contract.height, contract.width,
                              contract.upsampling == Upsampling::align_corners, small);
    resize_nearest(small.data(), contract.height, contract.width, image.height, image.width,
                   labels.data);
  }

  void check_finite(const Scores& scores) const {
    const std::size_t values = static_cast<std::size_t>(scores.classes) *
                               static_cast<std::size_t>(scores.height) *
                               static_cast<std::size_t>(scores.width);
    // A sum is finite where every term is: no float32 score of a sound network overflows a double.
    double sum = 0;
    for (std::size_t at = 0; at < values; ++at) sum += static_cast<double>(scores.data[at]);
    if (!std::isfinite(sum)) {
      throw Error(path + ": its output holds NaN or infinity for this image; look for overflow in "
                         "the network");
    }
  }

  std::string path;
  std::unique_ptr<Backend> backend;
  Preprocessor preprocessor;
};

Model::Model(const std::string& path, const Options& options)
    : impl_(std::make_unique<Impl>(path, options)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Labels Model::predict(const ImageView& image) const {
  Labels labels;
  predict(image, labels);
  return labels;
}

void Model::predict(const ImageView& image, Labels& labels) const {
  const auto read = [&](const OutputView& output) { impl_->read(output, image, labels); };
  if (impl_->backend->contract().takes_bytes) {
    std::vector<std::uint8_t> input;
    impl_->preprocessor.bytes(image, input);
    impl_->backend->run(input.data(), read);
  } else {
    std::vector<float> input;
    impl_->preprocessor.floats(image, input);
    impl_->backend->run(input.data(), read);
  }
}

const std::vector<std::string>& Model::classes() const {
  return impl_->backend->contract().classes;
}
int Model::height() const { return impl_->backend->contract().height; }
int Model::width() const { return impl_->backend->contract().width; }
std::string Model::runtime() const { return impl_->backend->name(); }

const char* version() { return SEGDEPLOY_VERSION; }

}  // namespace segdeploy
