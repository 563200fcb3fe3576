#include "resize.hpp"

#include <algorithm>
#include <cmath>

#include "vectors.hpp"

namespace segdeploy {
namespace {

constexpr int kChannels = 3;
// Pillow's fixed-point format: 8 bits for the byte and 2 bits of headroom leave 22 bits for a
// weight.
constexpr int kBits = 22;
constexpr std::int32_t kHalf = 1 << (kBits - 1);

std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255));
}

}  // namespace

bool is_down_first(int height, int width, int to_height, int to_width) {
  return height > to_height && height - to_height > 2 * (width - to_width);
}

bool Filter::prepare(int from, int to) {
  if (source == from && target == to) return false;
  source = target = 0;  // invalid until the filter is complete
  taps.clear();
  weights.clear();
  const double scale = static_cast<double>(from) / to;
  const double reach = std::max(scale, 1.0);  // half the width of the triangle filter
  for (int place = 0; place < to; ++place) {
    const double center = (place + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - reach + 0.5));
    const int last = std::min(from, static_cast<int>(center + reach + 0.5));
    shares_.clear();
    double total = 0;
    for (int at = first; at < last; ++at) {
      const double away = std::abs((at - center + 0.5) * (1.0 / reach));
      shares_.push_back(away < 1.0 ? 1.0 - away : 0.0);
      total += shares_.back();
    }
    taps.push_back({first, last - first, weights.size()});
    for (const double share : shares_) {
      const double exact = (total != 0.0 ? share / total : share) * (1 << kBits);
      weights.push_back(static_cast<std::int32_t>(exact + 0.5));
    }
  }
  source = from;
  target = to;
  return true;
}

void Resizer::columns(const std::uint8_t* source, int height, int width, std::uint8_t* target) {
  for (int row = 0; row < height; ++row) {
    const std::uint8_t* line = source + static_cast<std::ptrdiff_t>(row) * width * kChannels;
    for (const auto& tap : across_.taps) {
      std::int32_t sums[kChannels] = {kHalf, kHalf, kHalf};
      const std::uint8_t* pixel = line + static_cast<std::ptrdiff_t>(tap.first) * kChannels;
      const std::int32_t* weight = across_.weights.data() + tap.weights;
      for (int at = 0; at < tap.count; ++at, pixel += kChannels, ++weight) {
        for (int channel = 0; channel < kChannels; ++channel) {
          sums[channel] += pixel[channel] * *weight;
        }
      }
      for (const std::int32_t sum : sums) *target++ = rounded(sum);
    }
  }
}

SEGDEPLOY_VECTORS void Resizer::rows(const std::uint8_t* source, int width, std::uint8_t* target) {
  const std::size_t line = static_cast<std::size_t>(width) * kChannels;
  sums_.resize(line);
  for (const auto& tap : down_.taps) {
    std::fill(sums_.begin(), sums_.end(), kHalf);
    for (int at = 0; at < tap.count; ++at) {
      const std::int32_t weight = down_.weights[tap.weights + static_cast<std::size_t>(at)];
      const std::uint8_t* from = source + static_cast<std::size_t>(tap.first + at) * line;
      for (std::size_t x = 0; x < line; ++x) sums_[x] += from[x] * weight;
    }
    for (const std::int32_t sum : sums_) *target++ = rounded(sum);
  }
}

void Resizer::run(const std::vector<std::uint8_t>& source, int height, int width,
                  std::vector<std::uint8_t>& target, int to_height, int to_width) {
  const auto bytes = [](int high, int wide) {
    return static_cast<std::size_t>(high) * static_cast<std::size_t>(wide) * kChannels;
  };
  target.resize(bytes(to_height, to_width));
  const bool is_across = width != to_width;
  const bool is_down = height != to_height;
  if (is_across) across_.prepare(width, to_width);
  if (is_down) down_.prepare(height, to_height);
  if (!is_across && !is_down) {
    std::copy(source.begin(), source.end(), target.begin());
  } else if (!is_down) {
    columns(source.data(), height, width, target.data());
  } else if (!is_across) {
    rows(source.data(), width, target.data());
  } else if (is_down_first(height, width, to_height, to_width)) {
    between_.resize(bytes(to_height, width));
    rows(source.data(), width, between_.data());
    columns(between_.data(), to_height, width, target.data());
  } else {
    between_.resize(bytes(height, to_width));
    columns(source.data(), height, width, between_.data());
    rows(between_.data(), to_width, target.data());
  }
}

}  // namespace segdeploy
