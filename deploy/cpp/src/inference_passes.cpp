// Several runs for one picture.
#include <algorithm>
#include <utility>

#include "inference.hpp"
#include "passes.hpp"

namespace segdeploy {
namespace {

Maps maps_of(const OutputView& output) {
  Maps maps{static_cast<int>(output.shape[1]),
            static_cast<int>(output.shape[2]),
            static_cast<int>(output.shape[3]),
            {}};
  maps.data.assign(output.scores,
                   output.scores + static_cast<std::size_t>(maps.classes) * maps.plane());
  return maps;
}

// The picture's bytes in RGB order, and around it its edge, repeated up to a size.
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

Labels Inference::predict(const ImageView& image, const Passes& passes) const {
  Labels labels;
  fit(labels, image);
  if (!passes.tile && passes.scales.empty() && !passes.flip) {
    predict(image, labels.data.data());
    return labels;
  }
  const Pool<Workspace>::Lease work(workspaces_);
  if (passes.tile && contract().output == Output::labels) {
    tile(image, passes, *work, &labels, nullptr);
    return labels;
  }
  const Maps found = scores(image, passes, *work);
  work->labeller.best_classes({found.data.data(), found.classes, found.height, found.width},
                              image.height, image.width, labels.data.data());
  return labels;
}

Maps Inference::probabilities(const ImageView& image, const Passes& passes) const {
  check_view(image);
  if (contract().output == Output::labels) {
    throw Error(path_ + ": gives labels; export it without --output");
  }
  const Pool<Workspace>::Lease work(workspaces_);
  Maps found = upsample(scores(image, passes, *work), image.height, image.width, false);
  if (contract().output == Output::logits) softmax(found);
  return found;
}

// Scores of one run, of several that are fused, or of tiles.
Maps Inference::scores(const ImageView& image, const Passes& passes, Workspace& work) const {
  Maps found;
  if (passes.tile) {
    tile(image, passes, work, nullptr, &found);
    return found;
  }
  if (!passes.scales.empty() || passes.flip) return fused(image, passes, work);
  preprocessor_.run(image, work.prepared);
  found = run_maps({preprocessor_.input(work.prepared), {1, contract().height, contract().width}});
  check_finite(found.data.data(), found.data.size());
  return found;
}

Maps Inference::run_maps(const Input& input) const {
  Maps found;
  CallingReader reader([&](const OutputView& output) {
    check_output(path_, contract(), output, input.shape[1], input.shape[2]);
    found = maps_of(output);
  });
  backend_->run(input, reader);
  return found;
}

Maps Inference::fused(const ImageView& image, const Passes& passes, Workspace& work) const {
  check_scales(passes);
  preprocessor_.run(image, work.prepared);
  const Maps input{3, contract().height, contract().width, work.prepared.floats};
  const auto run_scaled = [this](const Maps& scaled) {
    return run_maps({scaled.data.data(), {1, scaled.height, scaled.width}});
  };
  const Maps total = fused_logits(run_scaled, input, passes, contract().multiple);
  check_finite(total.data.data(), total.data.size());
  return total;
}

void Inference::check_scales(const Passes& passes) const {
  const Contract& said = contract();
  if (said.takes_bytes || said.output != Output::logits) {
    throw Error(path_ +
                ": scales need float input and logits at run time; export without "
                "--preprocess and --output, or with --scales in the graph");
  }
  if (said.fuses) throw Error(path_ + ": the graph fuses scales already; run it as it is");
  for (const double scale : passes.scales) {
    const auto size = scaled_size(said.height, said.width, scale, said.multiple);
    const std::string told = std::to_string(size[0]) + "x" + std::to_string(size[1]);
    if (!backend_->takes_any_size()) {
      if (size[0] == said.height && size[1] == said.width) continue;
      throw Error(path_ + ": the graph is static at " + std::to_string(said.height) + "x" +
                  std::to_string(said.width) + ", and a scale gives " + told +
                  "; export with --dynamic");
    }
    const bool is_taken =
        said.profiles.empty() ||
        std::any_of(said.profiles.begin(), said.profiles.end(),
                    [&](const Profile& profile) { return profile.takes({1, size[0], size[1]}); });
    if (!is_taken) {
      throw Error(path_ + ": a scale gives " + told +
                  ", outside what the network takes; export it with other --min-size and "
                  "--max-size, or build it with other profiles");
    }
  }
}

// The largest piece of a picture that one run takes: all of it, if that fits.
std::array<int, 2> Inference::window(int height, int width) const {
  const Contract& said = contract();
  if (!backend_->takes_any_size() || said.profiles.empty()) return {said.height, said.width};
  std::array<int, 2> largest{};
  for (const Profile& profile : said.profiles) {
    const auto fitting = [&](int side, std::size_t axis) {
      // Up to the next multiple, so that a picture that nearly fits is one window; its edge is
      // repeated.
      const int whole = (side + said.multiple - 1) / said.multiple * said.multiple;
      return std::clamp(whole, profile.minimum[axis], profile.maximum[axis]);
    };
    const std::array<int, 2> size = {fitting(height, 1), fitting(width, 2)};
    if (area(size[0], size[1]) > area(largest[0], largest[1])) largest = size;
  }
  return largest;
}

void Inference::tile(const ImageView& image, const Passes& passes, Workspace& work, Labels* labels,
                     Maps* scores) const {
  if (!passes.scales.empty() || passes.flip) {
    throw Error("predict: tiles go with one scale, and not mirrored");
  }
  const Contract& said = contract();
  const std::array<int, 2> sides = window(image.height, image.width);
  const int high = sides[0], wide = sides[1];
  const int height = std::max(image.height, high), width = std::max(image.width, wide);
  const auto rgb = padded(image, height, width);
  const auto stride = static_cast<std::size_t>(width) * 3;
  Joined joined(height, width, high, wide);
  std::vector<std::uint8_t> part(area(high, wide));
  for (const int top : starts(height, high)) {
    for (const int left : starts(width, wide)) {
      const ImageView view{rgb.data() + (area(top, width) + static_cast<std::size_t>(left)) * 3,
                           high, wide, stride, Format::rgb};
      preprocessor_.run(view, work.prepared, high, wide);
      CallingReader reader([&](const OutputView& output) {
        check_output(path_, said, output, high, wide);
        if (output.scores == nullptr) {
          check_labels(path_, said, output.labels, part.size());
          part.assign(output.labels, output.labels + part.size());
          joined.add_labels(part, top, left);
          return;
        }
        const Maps found = maps_of(output);
        check_finite(found.data.data(), found.data.size());
        if (scores != nullptr) {
          joined.add_scores(found, top, left);
          return;
        }
        work.labeller.best_classes_of_small_map(
            {found.data.data(), found.classes, found.height, found.width}, high, wide,
            said.upsampling == Upsampling::align_corners, part.data());
        joined.add_labels(part, top, left);
      });
      backend_->run({preprocessor_.input(work.prepared), {1, high, wide}}, reader);
    }
  }
  if (scores != nullptr) *scores = joined.scores(image.height, image.width);
  if (labels != nullptr) labels->data = joined.labels(image.height, image.width);
}

}  // namespace segdeploy
