#include "inference_options.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

namespace segdeploy {
namespace {

constexpr std::uint64_t kLargestDenominator = 1000;
constexpr double kLargestScale = 100;
constexpr double kSmallestScale = 1.0 / 1024;

// Return the fraction closest to a number, with a denominator of at most 1000, by continued
// fractions.
std::pair<std::uint64_t, std::uint64_t> fraction_of(double number) {
  int exponent = 0;
  const double mantissa = std::frexp(number, &exponent);
  auto above = static_cast<std::uint64_t>(std::ldexp(mantissa, 53));
  int shift = 53 - exponent;
  while (shift > 0 && above % 2 == 0) {
    above /= 2;
    --shift;
  }
  std::uint64_t below = 1;
  if (shift > 0) below <<= shift;
  if (below <= kLargestDenominator) return {above, below};
  std::uint64_t p0 = 0, q0 = 1, p1 = 1, q1 = 0;
  std::uint64_t n = above, d = below;
  for (;;) {
    const std::uint64_t whole = n / d;
    const std::uint64_t q2 = q0 + whole * q1;
    if (q2 > kLargestDenominator) break;
    p0 = std::exchange(p1, p0 + whole * p1);
    q0 = std::exchange(q1, q2);
    n = std::exchange(d, n - whole * d);
  }
  const std::uint64_t k = (kLargestDenominator - q0) / q1;
  const std::uint64_t p = p0 + k * p1, q = q0 + k * q1;
  const auto distance = [&](std::uint64_t top, std::uint64_t bottom) {
    return std::abs(static_cast<long double>(top) / bottom - static_cast<long double>(number));
  };
  return distance(p1, q1) <= distance(p, q) ? std::pair{p1, q1} : std::pair{p, q};
}

}  // namespace

std::array<int, 2> scaled_size(int height, int width, double scale, int multiple) {
  if (!(scale > 0 && scale < kLargestScale)) {
    throw Error("scale " + std::to_string(scale) + ": must be positive, and below 100");
  }
  std::array<int, 2> size{};
  if (scale >= kSmallestScale) {
    const auto [above, below] = fraction_of(scale);
    const auto step = static_cast<std::uint64_t>(multiple);
    size = {static_cast<int>(height * above / (below * step) * step),
            static_cast<int>(width * above / (below * step) * step)};
  }
  if (size[0] == 0 || size[1] == 0) {
    throw Error("scale " + std::to_string(scale) + " shrinks a " + std::to_string(height) + "x" +
                std::to_string(width) + " image to " +
                (multiple == 1 ? "nothing" : "less than " + std::to_string(multiple) + " pixels"));
  }
  return size;
}

ClassScores fused_logits(const RunScores& run, const ClassScores& input,
                         const InferenceOptions& options, int multiple) {
  const std::vector<double> scales =
      options.scales.empty() ? std::vector<double>{1.0} : options.scales;
  const bool takes_mean = options.fuse == Fuse::mean;
  ClassScores total;
  const auto merge = [&](ClassScores& into, const ClassScores& other) {
    if (takes_mean) {
      add(into, other);
    } else {
      take_larger(into, other);
    }
  };
  for (const double scale : scales) {
    const auto size = scaled_size(input.height, input.width, scale, multiple);
    const ClassScores scaled = upsample(input, size[0], size[1], /*align_corners=*/true);
    ClassScores logits = run(scaled);
    // Merge before the resize, because a maximum does not commute with a resize.
    if (options.flip) merge(logits, mirrored(run(mirrored(scaled))));
    logits = upsample(std::move(logits), input.height, input.width, /*align_corners=*/true);
    if (total.data.empty()) {
      total = std::move(logits);
    } else {
      merge(total, logits);
    }
  }
  if (takes_mean) {
    const auto count = static_cast<float>(scales.size() * (options.flip ? 2 : 1));
    for (float& value : total.data) value /= count;
  }
  return total;
}

std::vector<int> starts(int length, int window) {
  if (length <= window) return {0};
  const int step = std::max(1, static_cast<int>(window * (1 - 1.0 / 3)));
  const int count = (length - window + step - 1) / step + 1;
  std::vector<int> found;
  for (std::int64_t index = 0; index < count; ++index) {
    found.push_back(static_cast<int>(index * (length - window) / (count - 1)));
  }
  return found;
}

WindowBlender::WindowBlender(int height, int width, int window_height, int window_width)
    : height_(height),
      width_(width),
      window_height_(window_height),
      window_width_(window_width),
      weights_(static_cast<std::size_t>(height) * static_cast<std::size_t>(width), 0.0F) {}

// Return the weight of a window's pixel: 1 at the edges, growing toward the center.
float WindowBlender::weight(int row, int column) const {
  const int down = std::min(row, window_height_ - 1 - row);
  const int across = std::min(column, window_width_ - 1 - column);
  return static_cast<float>(std::min(down, across) + 1);
}

void WindowBlender::add_scores(const ClassScores& found, int top, int left) {
  const std::size_t plane = weights_.size();
  if (scores_.data.empty()) {
    scores_ = {found.classes, height_, width_, {}};
    scores_.data.assign(static_cast<std::size_t>(found.classes) * plane, 0.0F);
  }
  for (int row = 0; row < window_height_; ++row) {
    for (int column = 0; column < window_width_; ++column) {
      const float share = weight(row, column);
      const auto from = static_cast<std::size_t>(row) * static_cast<std::size_t>(window_width_) +
                        static_cast<std::size_t>(column);
      const auto to = static_cast<std::size_t>(top + row) * static_cast<std::size_t>(width_) +
                      static_cast<std::size_t>(left + column);
      weights_[to] += share;
      for (std::size_t id = 0; id < static_cast<std::size_t>(found.classes); ++id) {
        scores_.data[id * plane + to] += found.data[id * found.plane() + from] * share;
      }
    }
  }
}

void WindowBlender::add_labels(const std::vector<std::uint8_t>& found, int top, int left) {
  labels_.resize(weights_.size());
  for (int row = 0; row < window_height_; ++row) {
    for (int column = 0; column < window_width_; ++column) {
      const auto to = static_cast<std::size_t>(top + row) * static_cast<std::size_t>(width_) +
                      static_cast<std::size_t>(left + column);
      if (!(weight(row, column) > weights_[to])) continue;
      weights_[to] = weight(row, column);
      labels_[to] = found[static_cast<std::size_t>(row) * static_cast<std::size_t>(window_width_) +
                          static_cast<std::size_t>(column)];
    }
  }
}

ClassScores WindowBlender::scores(int height, int width) const {
  ClassScores cut{scores_.classes, height, width, {}};
  for (std::size_t id = 0; id < static_cast<std::size_t>(scores_.classes); ++id) {
    for (int row = 0; row < height; ++row) {
      for (int column = 0; column < width; ++column) {
        const auto at = static_cast<std::size_t>(row) * static_cast<std::size_t>(width_) +
                        static_cast<std::size_t>(column);
        cut.data.push_back(scores_.data[id * weights_.size() + at] / weights_[at]);
      }
    }
  }
  return cut;
}

std::vector<std::uint8_t> WindowBlender::labels(int height, int width) const {
  std::vector<std::uint8_t> cut;
  for (int row = 0; row < height; ++row) {
    const auto line = labels_.begin() + static_cast<std::ptrdiff_t>(row) * width_;
    cut.insert(cut.end(), line, line + width);
  }
  return cut;
}

}  // namespace segdeploy
