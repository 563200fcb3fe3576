#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace segdeploy {
namespace {

constexpr int kChannels = 3;
// Pillow's fixed point: 8 bits of the byte and 2 of head room leave 22 for a weight.
constexpr int kBits = 22;

// Along one axis: the first source place of each output, and its weights in fixed point.
struct Filter {
  struct Tap {
    int first;
    int count;
    std::size_t weights;  // where they begin
  };
  std::vector<Tap> taps;
  std::vector<std::int32_t> weights;
};

Filter make_filter(int source, int target) {
  const double scale = static_cast<double>(source) / target;
  const double reach = std::max(scale, 1.0);  // a triangle, as wide as an output is in the source
  Filter filter;
  std::vector<double> shares;
  for (int place = 0; place < target; ++place) {
    const double centre = (place + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(centre - reach + 0.5));
    const int last = std::min(source, static_cast<int>(centre + reach + 0.5));
    shares.clear();
    double total = 0;
    for (int at = first; at < last; ++at) {
      const double away = std::abs((at - centre + 0.5) * (1.0 / reach));
      shares.push_back(away < 1.0 ? 1.0 - away : 0.0);
      total += shares.back();
    }
    filter.taps.push_back({first, last - first, filter.weights.size()});
    for (const double share : shares) {
      const double exact = (total != 0.0 ? share / total : share) * (1 << kBits);
      filter.weights.push_back(static_cast<std::int32_t>(exact + 0.5));
    }
  }
  return filter;
}

std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255));
}

constexpr std::int32_t kHalf = 1 << (kBits - 1);

void resize_columns(const std::uint8_t* source, int height, int width, std::uint8_t* target,
                    const Filter& filter) {
  for (int row = 0; row < height; ++row) {
    const std::uint8_t* line = source + static_cast<std::ptrdiff_t>(row) * width * kChannels;
    for (const auto& tap : filter.taps) {
      std::int32_t sums[kChannels] = {kHalf, kHalf, kHalf};
      const std::uint8_t* pixel = line + static_cast<std::ptrdiff_t>(tap.first) * kChannels;
      for (int at = 0; at < tap.count; ++at, pixel += kChannels) {
        const std::int32_t weight = filter.weights[tap.weights + static_cast<std::size_t>(at)];
        for (int channel = 0; channel < kChannels; ++channel) {
          sums[channel] += pixel[channel] * weight;
        }
      }
      for (const std::int32_t sum : sums) *target++ = rounded(sum);
    }
  }
}

void resize_rows(const std::uint8_t* source, int width, std::uint8_t* target,
                 const Filter& filter) {
  const std::ptrdiff_t line = static_cast<std::ptrdiff_t>(width) * kChannels;
  std::vector<std::int32_t> sums(static_cast<std::size_t>(line));
  for (const auto& tap : filter.taps) {
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int at = 0; at < tap.count; ++at) {
      const std::int32_t weight = filter.weights[tap.weights + static_cast<std::size_t>(at)];
      const std::uint8_t* from = source + (tap.first + at) * line;
      for (std::ptrdiff_t x = 0; x < line; ++x) sums[static_cast<std::size_t>(x)] += from[x] * weight;
    }
    for (const std::int32_t sum : sums) *target++ = rounded(sum);
  }
}

}  // namespace

void resize_bilinear(const std::vector<std::uint8_t>& source, int height, int width,
                     std::vector<std::uint8_t>& target, int to_height, int to_width) {
  const auto bytes = [](int rows, int columns) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) * kChannels;
  };
  target.resize(bytes(to_height, to_width));
  if (width == to_width && height == to_height) {
    target = source;
  } else if (height == to_height) {
    resize_columns(source.data(), height, width, target.data(), make_filter(width, to_width));
  } else if (width == to_width) {
    resize_rows(source.data(), width, target.data(), make_filter(height, to_height));
  } else {
    std::vector<std::uint8_t> between(bytes(height, to_width));
    resize_columns(source.data(), height, width, between.data(), make_filter(width, to_width));
    resize_rows(between.data(), to_width, target.data(), make_filter(height, to_height));
  }
}

}  // namespace segdeploy
