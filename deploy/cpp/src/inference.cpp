#include "inference.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "files.hpp"
#include "vectors.hpp"

namespace segdeploy {
namespace {

constexpr int kMaxContexts = 64;
constexpr int kMaxThreads = 1024;
constexpr int kMaxQueued = 1 << 16;
constexpr int kMaxImages = 8;  // per run, if no profile sets a limit

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::unique_ptr<Backend> open(const std::string& path, const Options& options) {
  if (options.contexts < 1 || options.contexts > kMaxContexts) {
    throw Error("contexts " + std::to_string(options.contexts) + ": must be 1 to " +
                std::to_string(kMaxContexts));
  }
  if (options.threads < 0 || options.threads > kMaxThreads) {
    throw Error("threads " + std::to_string(options.threads) +
                ": must be 0, which leaves them to the runtime, to " + std::to_string(kMaxThreads));
  }
  if (options.queue < 1 || options.queue > kMaxQueued) {
    throw Error("queue " + std::to_string(options.queue) + ": must be 1 to " +
                std::to_string(kMaxQueued));
  }
  check_regular(path);
  if (ends_with(path, ".onnx")) return open_onnxruntime(path, options);
  if (ends_with(path, ".engine") || ends_with(path, ".plan")) return open_tensorrt(path, options);
  throw Error(path + ": is neither an .onnx file nor an .engine");
}

SEGDEPLOY_VECTORS bool is_finite(const float* values, std::size_t count) {
  constexpr std::uint32_t kExponent = 0x7F800000;  // all set in NaN and infinity only
  std::uint32_t found = 0;
  for (std::size_t at = 0; at < count; ++at) {
    std::uint32_t bits;
    std::memcpy(&bits, values + at, sizeof bits);
    found |= static_cast<std::uint32_t>((bits & kExponent) == kExponent);
  }
  return found == 0;
}

// Return a view of one image of a batched output.
OutputView image_of(const OutputView& output, std::size_t index) {
  const std::size_t size = output.values() / static_cast<std::size_t>(output.shape[0]);
  OutputView one = output;
  one.shape[0] = 1;
  if (one.scores != nullptr) one.scores += index * size;
  if (one.labels != nullptr) one.labels += index * size;
  return one;
}

}  // namespace

void fit(Labels& labels, const ImageView& image) {
  check_view(image);
  labels.height = image.height;
  labels.width = image.width;
  labels.data.resize(area(image.height, image.width));
}

Inference::Inference(const std::string& path, const Options& options)
    : path_(path),
      backend_(open(path, options)),
      preprocessor_(backend_->contract()),
      workspaces_([] { return std::make_unique<Workspace>(); }) {}

void Inference::predict(const ImageView& image, std::uint8_t* labels) const {
  check_view(image);
  if (backend_->label(image, labels)) return;
  const Pool<Workspace>::Lease work(workspaces_);
  CallingReader reader([&](const OutputView& output) { read(output, image, *work, labels); });
  run(image, *work, reader);
}

void Inference::predict(const ImageView& image, Labels& labels) const {
  fit(labels, image);
  predict(image, labels.data.data());
}

void Inference::run(const ImageView& image, Workspace& work, Reader& reader) const {
  run(image, work, reader, [] { return 0.0; });
}

double Inference::run(const ImageView& image, Workspace& work, Reader& reader,
                      double (*clock)()) const {
  preprocessor_.run(image, work.prepared);
  const double prepared = clock();
  backend_->run({preprocessor_.input(work.prepared), {1, contract().height, contract().width}},
                reader);
  return prepared;
}

std::vector<Labels> Inference::predict(const std::vector<ImageView>& images) const {
  std::vector<Labels> labels(images.size());
  for (std::size_t at = 0; at < images.size(); ++at) {
    fit(labels[at], images[at]);
  }
  const auto most = static_cast<std::size_t>(most_images());
  for (std::size_t start = 0; start < images.size(); start += most) {
    const std::size_t count = std::min(most, images.size() - start);
    if (count == 1) {
      predict(images[start], labels[start].data.data());
    } else {
      predict_together(&images[start], static_cast<int>(count), &labels[start]);
    }
  }
  return labels;
}

// Return the largest batch size for images of the network's size.
int Inference::most_images() const {
  if (!backend_->takes_batches()) return 1;
  int most = 0;
  for (const Profile& profile : contract().profiles) {
    if (profile.takes({1, contract().height, contract().width})) {
      most = std::max(most, profile.maximum[0]);
    }
  }
  return most > 0 ? most : kMaxImages;
}

void Inference::predict_together(const ImageView* images, int count, Labels* labels) const {
  const Pool<Workspace>::Lease work(workspaces_);
  const bool takes_bytes = contract().takes_bytes;
  work->bytes.clear();
  work->floats.clear();
  for (int at = 0; at < count; ++at) {
    preprocessor_.run(images[at], work->prepared);
    const auto& [rgb, bytes, floats, resizer] = work->prepared;
    if (takes_bytes) {
      work->bytes.insert(work->bytes.end(), bytes.begin(), bytes.end());
    } else {
      work->floats.insert(work->floats.end(), floats.begin(), floats.end());
    }
  }
  const void* data = takes_bytes ? static_cast<const void*>(work->bytes.data())
                                 : static_cast<const void*>(work->floats.data());
  CallingReader reader([&](const OutputView& output) {
    if (output.shape[0] != count) {
      throw Error(path_ + ": gave " + text_of(output) + " for " + std::to_string(count) +
                  " images");
    }
    for (int at = 0; at < count; ++at) {
      read(image_of(output, static_cast<std::size_t>(at)), images[at], *work,
           labels[at].data.data());
    }
  });
  backend_->run({data, {count, contract().height, contract().width}}, reader);
}

void Inference::read(const OutputView& output, const ImageView& image, Workspace& work,
                     std::uint8_t* labels) const {
  const Contract& network_contract = contract();
  check_output(path_, network_contract, output, network_contract.height, network_contract.width);
  const int height = static_cast<int>(output.shape[output.sides - 2]);
  const int width = static_cast<int>(output.shape[output.sides - 1]);
  if (output.scores == nullptr) {
    check_labels(path_, network_contract, output.labels, area(height, width));
    resize_nearest(output.labels, height, width, image.height, image.width, labels);
    return;
  }
  const Scores scores{output.scores, static_cast<int>(network_contract.classes.size()), height,
                      width};
  check_finite(scores.data, static_cast<std::size_t>(scores.classes) * area(height, width));
  label_scores(network_contract, scores, image.height, image.width, work.labeller, labels);
}

void Inference::check_finite(const float* values, std::size_t count) const {
  if (!is_finite(values, count)) refuse_not_finite(path_);
}

}  // namespace segdeploy
