#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <mutex>
#include <utility>

#include "backend.hpp"
#include "golden.hpp"
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

// Preprocessing is float32 arithmetic on bytes: more than rounding is another resize, mean or std.
constexpr float kMostInputDifference = 1e-4F;

// Python's limits by precision: the largest difference of a score, and the least share of labels.
std::pair<float, float> limits_of(const std::string& precision) {
  if (precision == "fp32") return {1e-3F, 0.999F};
  if (precision == "fp16") return {0.05F, 0.995F};
  if (precision == "bf16") return {0.3F, 0.98F};
  return {0.5F, 0.98F};  // int8 and mixed
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
    LabelReader reader(*this, image, *lease, labels);
    run(image, *lease, reader);
  }

  SelfTest::Picture compare(const GoldenVector& wanted) {
    const ImageView image{wanted.image.data(), wanted.height, wanted.width};
    const Workspaces::Lease lease(workspaces);
    Labels labels;
    ComparingReader reader(*this, image, *lease, labels, wanted.output);
    run(image, *lease, reader);
    const Prepared& prepared = (*lease).prepared;
    SelfTest::Picture found;
    found.input = backend->contract().takes_bytes
                      ? largest(wanted.input, prepared.bytes.data(), prepared.bytes.size())
                      : largest(wanted.input, prepared.floats.data(), prepared.floats.size());
    const auto [low, high] = std::minmax_element(wanted.output.begin(), wanted.output.end());
    found.output = reader.difference / (*high > *low ? *high - *low : 1.0F);
    std::size_t equal = 0;
    for (std::size_t at = 0; at < wanted.labels.size(); ++at) {
      equal += labels.data[at] == wanted.labels[at] ? 1 : 0;
    }
    found.agreement = static_cast<float>(equal) / static_cast<float>(wanted.labels.size());
    return found;
  }

  void run(const ImageView& image, Workspace& work, Reader& reader) const {
    preprocessor.run(image, work.prepared);
    const void* input = work.prepared.floats.data();
    if (backend->contract().takes_bytes) input = work.prepared.bytes.data();
    backend->run(input, reader);
  }

  // The largest difference of samples from the values that they were taken of.
  template <typename Value>
  static float largest(const std::vector<float>& samples, const Value* values, std::size_t size) {
    float found = 0;
    for (std::size_t at = 0; at < samples.size(); ++at) {
      const auto ours = static_cast<float>(values[sample_place(at, samples.size(), size)]);
      const float off = std::abs(ours - samples[at]);
      found = off <= found ? found : off;  // NaN counts
    }
    return found;
  }

  class LabelReader : public Reader {
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

  // Makes labels, and finds how far the output is from samples of another.
  class ComparingReader final : public LabelReader {
   public:
    ComparingReader(const Impl& model, const ImageView& image, Workspace& work, Labels& labels,
                    const std::vector<float>& wanted)
        : LabelReader(model, image, work, labels), wanted_(wanted) {}

    void read(const OutputView& output) override {
      LabelReader::read(output);
      std::size_t size = 1;
      for (std::size_t side = 0; side < output.sides; ++side) {
        size *= static_cast<std::size_t>(output.shape[side]);
      }
      difference = output.scores != nullptr ? largest(wanted_, output.scores, size)
                                            : largest(wanted_, output.labels, size);
    }

    float difference = 0;

   private:
    const std::vector<float>& wanted_;
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

SelfTest Model::self_test(const std::string& golden) const {
  const Contract& contract = impl_->backend->contract();
  const bool has_scores = contract.output != Output::labels;
  SelfTest found;
  for (const GoldenVector& wanted : read_golden(golden)) {
    const auto picture = impl_->compare(wanted);
    const auto place = "picture " + std::to_string(found.pictures.size()) + ": ";
    found.pictures.push_back(picture);
    if (!found.complaint.empty()) continue;
    const auto [most_output, least_agreement] = limits_of(contract.precision);
    if (!(picture.input <= kMostInputDifference)) {
      found.complaint = place + "the network's input differs by " + std::to_string(picture.input);
    } else if (has_scores && !(picture.output <= most_output)) {
      found.complaint = place + "the network's output differs by " +
                        std::to_string(picture.output) + " of its range";
    } else if (!(picture.agreement >= least_agreement)) {
      found.complaint = place + std::to_string(100 * picture.agreement) +
                        " % of the labels are the reference's";
    }
  }
  return found;
}

const std::vector<std::string>& Model::classes() const {
  return impl_->backend->contract().classes;
}
int Model::height() const { return impl_->backend->contract().height; }
int Model::width() const { return impl_->backend->contract().width; }
std::string Model::runtime() const { return impl_->backend->name(); }

const char* version() { return SEGDEPLOY_VERSION; }

}  // namespace segdeploy
