#include <cstring>
#include <fstream>
#include <mutex>
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

std::string told(const OutputView& output) {
  std::string text;
  for (std::size_t side = 0; side < output.sides; ++side) {
    text += (side == 0 ? "" : "x") + std::to_string(output.shape[side]);
  }
  return text;
}

// What one call works with. A model keeps those that are idle, so that calls allocate nothing.
struct Workspace {
  Prepared prepared;
  Labeller labeller;
  std::vector<std::uint8_t> small;
};

class Workspaces {
 public:
  // A workspace for as long as a call runs.
  class Lease {
   public:
    explicit Lease(Workspaces& owner) : owner_(owner), held_(owner.take()) {}
    ~Lease() { owner_.give(std::move(held_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Workspace& operator*() const { return *held_; }

   private:
    Workspaces& owner_;
    std::unique_ptr<Workspace> held_;
  };

 private:
  std::unique_ptr<Workspace> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) {
      idle_.reserve(++made_);  // giving back must not fail
      return std::make_unique<Workspace>();
    }
    auto taken = std::move(idle_.back());
    idle_.pop_back();
    return taken;
  }

  void give(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(workspace));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> idle_;
  std::size_t made_ = 0;
};

}  // namespace

struct Model::Impl {
  Impl(const std::string& given, const Options& options)
      : path(given), backend(open(given, options)), preprocessor(backend->contract()) {}

  void predict(const ImageView& image, Labels& labels) {
    const Workspaces::Lease lease(workspaces);
    Workspace& work = *lease;
    preprocessor.run(image, work.prepared);
    LabelReader reader(*this, image, work, labels);
    const void* input = work.prepared.floats.data();
    if (backend->contract().takes_bytes) input = work.prepared.bytes.data();
    backend->run(input, reader);
  }

  class LabelReader final : public Reader {
   public:
    LabelReader(const Impl& model, const ImageView& image, Workspace& work, Labels& labels)
        : model_(model), image_(image), work_(work), labels_(labels) {}

    void read(const OutputView& output) override { model_.read(output, image_, work_, labels_); }

   private:
    const Impl& model_;
    const ImageView& image_;
    Workspace& work_;
    Labels& labels_;
  };

  void read(const OutputView& output, const ImageView& image, Workspace& work,
            Labels& labels) const {
    const Contract& contract = backend->contract();
    const bool has_scores = output.scores != nullptr;
    const auto count = static_cast<std::int64_t>(contract.classes.size());
    if (output.sides != (has_scores ? 4U : 3U) || output.shape[0] != 1 ||
        (has_scores && output.shape[1] != count)) {
      throw Error(path + ": gave " + told(output) + ", which its contract does not say");
    }
    const int height = static_cast<int>(output.shape[output.sides - 2]);
    const int width = static_cast<int>(output.shape[output.sides - 1]);
    labels.height = image.height;
    labels.width = image.width;
    if (!has_scores) {
      resize_nearest(output.labels, height, width, image.height, image.width, labels.data);
      return;
    }
    const Scores scores{output.scores, static_cast<int>(count), height, width};
    check_finite(scores);
    if (contract.upsampling == Upsampling::none) {
      work.labeller.best_classes(scores, image.height, image.width, labels.data);
      return;
    }
    const bool align_corners = contract.upsampling == Upsampling::align_corners;
    const bool is_own_size = image.height == contract.height && image.width == contract.width;
    auto& made = is_own_size ? labels.data : work.small;
    work.labeller.best_classes_of_small_map(scores, contract.height, contract.width, align_corners,
                                            made);
    if (is_own_size) return;
    resize_nearest(made.data(), contract.height, contract.width, image.height, image.width,
                   labels.data);
  }

  void check_finite(const Scores& scores) const {
    const std::size_t values = static_cast<std::size_t>(scores.classes) *
                               static_cast<std::size_t>(scores.height) *
                               static_cast<std::size_t>(scores.width);
    constexpr std::uint32_t kExponent = 0x7F800000;  // all ones in NaN and infinity alone
    std::uint32_t found = 0;
    for (std::size_t at = 0; at < values; ++at) {
      std::uint32_t bits;
      std::memcpy(&bits, scores.data + at, sizeof bits);
      found |= static_cast<std::uint32_t>((bits & kExponent) == kExponent);
    }
    if (found != 0) {
      throw Error(path + ": its output holds NaN or infinity for this image; look for overflow in "
                         "the network");
    }
  }

  std::string path;
  std::unique_ptr<Backend> backend;
  Preprocessor preprocessor;
  Workspaces workspaces;
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
  impl_->predict(image, labels);
}

const std::vector<std::string>& Model::classes() const {
  return impl_->backend->contract().classes;
}
int Model::height() const { return impl_->backend->contract().height; }
int Model::width() const { return impl_->backend->contract().width; }
std::string Model::runtime() const { return impl_->backend->name(); }

const char* version() { return SEGDEPLOY_VERSION; }

}  // namespace segdeploy
