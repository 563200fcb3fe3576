#include <memory>
#include <utility>

#include "inference.hpp"
#include "segdeploy/segdeploy.hpp"
#include "self_test.hpp"
#include "workers.hpp"

namespace segdeploy {

struct Model::Impl {
  Impl(const std::string& path, const Options& options)
      : inference(path, options), workers(options.contexts, options.queue) {}

  Labels labels(const ImageView& image) const {
    Labels found;
    inference.predict(image, found);
    return found;
  }

  template <typename Call>
  std::future<Labels> start(Call call) {
    const auto task = std::make_shared<std::packaged_task<Labels()>>(std::move(call));
    std::future<Labels> result = task->get_future();
    workers.give([task] { (*task)(); });
    return result;
  }

  Inference inference;
  Workers workers;  // last: destroyed before `inference`, which it uses
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

Labels Model::predict(const ImageView& image, const InferenceOptions& options) const {
  return impl_->inference.predict(image, options);
}

void Model::predict(const ImageView& image, Labels& labels) const {
  impl_->inference.predict(image, labels);
}

void Model::predict(const ImageView& image, std::uint8_t* labels) const {
  if (labels == nullptr) throw Error("predict: there is no memory for the labels");
  impl_->inference.predict(image, labels);
}

std::vector<Labels> Model::predict(const std::vector<ImageView>& images) const {
  return impl_->inference.predict(images);
}

std::future<Labels> Model::submit(const ImageView& image) const {
  check_view(image);
  return impl_->start([impl = impl_.get(), image] { return impl->labels(image); });
}

std::future<Labels> Model::submit(Image image) const {
  const ImageView seen{image.data.data(), image.height, image.width, image.stride, image.format};
  check_view(seen);
  if (image.data.size() < extent(seen)) {
    throw Error("submit: the image has " + std::to_string(image.data.size()) + " bytes, and " +
                std::to_string(image.height) + "x" + std::to_string(image.width) + " pixels take " +
                std::to_string(extent(seen)));
  }
  return impl_->start([impl = impl_.get(), kept = std::move(image)] {
    return impl->labels({kept.data.data(), kept.height, kept.width, kept.stride, kept.format});
  });
}

Probabilities Model::probabilities(const ImageView& image, const InferenceOptions& options) const {
  ClassScores maps = impl_->inference.probabilities(image, options);
  return {maps.classes, maps.height, maps.width, std::move(maps.data)};
}

void Model::enqueue(const void* input, void* output, void* stream) const {
  if (input == nullptr || output == nullptr) throw Error("enqueue: the input or output is null");
  impl_->inference.backend().enqueue(input, output, stream);
}

SelfTest Model::self_test(const std::string& golden) const {
  return segdeploy::self_test(impl_->inference, golden);
}

const std::vector<std::string>& Model::classes() const {
  return impl_->inference.contract().classes;
}
const std::vector<std::array<std::uint8_t, 3>>& Model::palette() const {
  return impl_->inference.contract().palette;
}
int Model::height() const { return impl_->inference.contract().height; }
int Model::width() const { return impl_->inference.contract().width; }
std::string Model::runtime() const { return impl_->inference.backend().name(); }

const char* version() { return SEGDEPLOY_VERSION; }

}  // namespace segdeploy
