// Inference with several runs per image: several scales, flips, or tiles.
#include <algorithm>
#include <utility>

#include "inference.hpp"
#include "inference_options.hpp"

namespace segdeploy {
namespace {

ClassScores copy_scores(const OutputView& output) {
  ClassScores maps{static_cast<int>(output.shape[1]),
                   static_cast<int>(output.shape[2]),
                   static_cast<int>(output.shape[3]),
                   {}};
  maps.data.assign(output.scores,
                   output.scores + static_cast<std::size_t>(maps.classes) * maps.plane());
  return maps;
}

// Return the image's bytes in RGB order, padded to a size by repeating the right and bottom edges.
std::vector<std::uint8_t> padded(const ImageView& image, int height, int width) {
  std::vector<std::uint8_t> rgb(area(image.height, image.width) * 3);
  gather(image, rgb.data());
  if (height == image.height && width == image.width) return rgb;
  std::vector<std::uint8_t> larger(area(height, width) * 3);
  for (int row = 0; row < height; ++row) {
    for (int column = 0; column < width; ++column) {
      const std::size_t from = area(std::min(row, image.height - 1), image.width) +
                               static_cast<std::size_t>(std::min(column, image.width - 1));
      const std::size_t to = area(row, width) + static_cast<std::size_t>(column);
      std::copy_n(rgb.begin() + static_cast<std::ptrdiff_t>(from * 3), 3,
                  larger.begin() + static_cast<std::ptrdiff_t>(to * 3));
    }
  }
  return larger;
}

}  // namespace

Labels Inference::predict(const ImageView& image, const InferenceOptions& options) const {
  Labels labels;
  fit(labels, image);
  if (!options.tile && options.scales.empty() && !options.flip) {
    predict(image, labels.data.data());
    return labels;
  }
  const Pool<Workspace>::Lease work(workspaces_);
  if (options.tile && contract().output == Output::labels) {
    labels.data = tiled(image, options, *work).labels(image.height, image.width);
    return labels;
  }
  const ClassScores found = scores(image, options, *work);
  work->labeller.best_classes({found.data.data(), found.classes, found.height, found.width},
                              image.height, image.width, labels.data.data());
  return labels;
}

ClassScores Inference::probabilities(const ImageView& image,
                                     const InferenceOptions& options) const {
  check_view(image);
  if (contract().output == Output::labels) {
    throw Error(path_ + ": gives labels; export it without --output");
  }
  const Pool<Workspace>::Lease work(workspaces_);
  ClassScores found = upsample(scores(image, options, *work), image.height, image.width, false);
  if (contract().output == Output::logits) softmax(found);
  return found;
}

// Return the scores of a single run, of fused runs, or of tiles.
ClassScores Inference::scores(const ImageView& image, const InferenceOptions& options,
                              Workspace& work) const {
  if (options.tile) return tiled(image, options, work).scores(image.height, image.width);
  if (!options.scales.empty() || options.flip) return fused(image, options, work);
  preprocessor_.run(image, work.prepared);
  ClassScores found =
      run_scores({preprocessor_.input(work.prepared), {1, contract().height, contract().width}});
  check_finite(found.data.data(), found.data.size());
  return found;
}

ClassScores Inference::run_scores(const Input& input) const {
  ClassScores found;
  CallingReader reader([&](const OutputView& output) {
    check_output(path_, contract(), output, input.shape[1], input.shape[2]);
    found = copy_scores(output);
  });
  backend_->run(input, reader);
  return found;
}

ClassScores Inference::fused(const ImageView& image, const InferenceOptions& options,
                             Workspace& work) const {
  check_scales(options);
  preprocessor_.run(image, work.prepared);
  const ClassScores input{3, contract().height, contract().width, work.prepared.floats};
  const auto run_scaled = [this](const ClassScores& scaled) {
    return run_scores({scaled.data.data(), {1, scaled.height, scaled.width}});
  };
  const ClassScores total = fused_logits(run_scaled, input, options, contract().multiple);
  check_finite(total.data.data(), total.data.size());
  return total;
}

void Inference::check_scales(const InferenceOptions& options) const {
  const Contract& network_contract = contract();
  if (network_contract.takes_bytes || network_contract.output != Output::logits) {
    throw Error(path_ +
                ": scales need float input and logits at run time; export without "
                "--preprocess and --output, or with --scales in the graph");
  }
  if (network_contract.fuses)
    throw Error(path_ + ": the graph fuses scales already; run it as it is");
  for (const double scale : options.scales) {
    const auto size = scaled_size(network_contract.height, network_contract.width, scale,
                                  network_contract.multiple);
    const std::string size_text = std::to_string(size[0]) + "x" + std::to_string(size[1]);
    if (!backend_->takes_any_size()) {
      if (size[0] == network_contract.height && size[1] == network_contract.width) continue;
      throw Error(path_ + ": the graph is static at " + std::to_string(network_contract.height) +
                  "x" + std::to_string(network_contract.width) + ", and a scale gives " +
                  size_text + "; export with --dynamic");
    }
    const bool is_taken =
        network_contract.profiles.empty() ||
        std::any_of(network_contract.profiles.begin(), network_contract.profiles.end(),
                    [&](const Profile& profile) { return profile.takes({1, size[0], size[1]}); });
    if (!is_taken) {
      throw Error(path_ + ": a scale gives " + size_text +
                  ", outside what the network takes; export it with other --min-size and "
                  "--max-size, or build it with other profiles");
    }
  }
}

// Return the size of the largest window of an image that one run takes: the whole image, if it
// fits.
std::array<int, 2> Inference::window(int height, int width) const {
  const Contract& network_contract = contract();
  if (!backend_->takes_any_size() || network_contract.profiles.empty())
    return {network_contract.height, network_contract.width};
  std::array<int, 2> largest{};
  for (const Profile& profile : network_contract.profiles) {
    const auto fitting = [&](int side, std::size_t axis) {
      // Round up to the next multiple, so that an image that nearly fits is one window. The image
      // is padded by repeating its edge.
      const int whole = (side + network_contract.multiple - 1) / network_contract.multiple *
                        network_contract.multiple;
      return std::clamp(whole, profile.minimum[axis], profile.maximum[axis]);
    };
    const std::array<int, 2> size = {fitting(height, 1), fitting(width, 2)};
    if (area(size[0], size[1]) > area(largest[0], largest[1])) largest = size;
  }
  return largest;
}

WindowBlender Inference::tiled(const ImageView& image, const InferenceOptions& options,
                               Workspace& work) const {
  if (!options.scales.empty() || options.flip) {
    throw Error("predict: tiles go with one scale, and not mirrored");
  }
  const std::array<int, 2> sides = window(image.height, image.width);
  const int high = sides[0], wide = sides[1];
  const int height = std::max(image.height, high), width = std::max(image.width, wide);
  const auto rgb = padded(image, height, width);
  const auto stride = static_cast<std::size_t>(width) * 3;
  WindowBlender blender(height, width, high, wide);
  for (const int top : starts(height, high)) {
    for (const int left : starts(width, wide)) {
      const ImageView view{rgb.data() + (area(top, width) + static_cast<std::size_t>(left)) * 3,
                           high, wide, stride, Format::rgb};
      preprocessor_.run(view, work.prepared, high, wide);
      CallingReader reader([&](const OutputView& output) {
        add_window(output, {top, left, high, wide}, work, blender);
      });
      backend_->run({preprocessor_.input(work.prepared), {1, high, wide}}, reader);
    }
  }
  return blender;
}

void Inference::add_window(const OutputView& output, const Window& place, Workspace& work,
                           WindowBlender& blender) const {
  const Contract& network_contract = contract();
  check_output(path_, network_contract, output, place.height, place.width);
  if (output.scores == nullptr) {
    const std::size_t count = area(place.height, place.width);
    check_labels(path_, network_contract, output.labels, count);
    blender.add_labels({output.labels, output.labels + count}, place.top, place.left);
    return;
  }
  const ClassScores found = copy_scores(output);
  check_finite(found.data.data(), found.data.size());
  if (network_contract.output != Output::labels) {
    blender.add_scores(found, place.top, place.left);
    return;
  }
  std::vector<std::uint8_t> labels(area(place.height, place.width));
  work.labeller.best_classes_of_low_resolution(
      {found.data.data(), found.classes, found.height, found.width}, place.height, place.width,
      network_contract.upsampling == Upsampling::align_corners, labels.data());
  blender.add_labels(labels, place.top, place.left);
}

}  // namespace segdeploy
