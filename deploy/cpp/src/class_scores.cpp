#include "class_scores.hpp"

#include <algorithm>
#include <cmath>

namespace segdeploy {
void fill_taps(int source, int target, bool align_corners, std::vector<Tap>& taps) {
  taps.clear();
  const double scale = align_corners ? (source - 1.0) / std::max(target - 1, 1)
                                     : static_cast<double>(source) / target;
  for (int place = 0; place < target; ++place) {
    double center = align_corners ? place * scale : (place + 0.5) * scale - 0.5;
    center = std::clamp(center, 0.0, source - 1.0);
    const int low = static_cast<int>(std::floor(center));
    taps.push_back({low, std::min(low + 1, source - 1), static_cast<float>(center - low)});
  }
}

ClassScores upsample(ClassScores maps, int height, int width, bool align_corners) {
  const auto classes = static_cast<std::size_t>(maps.classes);
  std::vector<Tap> taps;
  if (maps.height != height) {
    fill_taps(maps.height, height, align_corners, taps);
    ClassScores taller{maps.classes, height, maps.width, {}};
    taller.data.reserve(classes * taller.plane());
    const auto line = static_cast<std::size_t>(maps.width);
    for (std::size_t id = 0; id < classes; ++id) {
      for (const Tap& tap : taps) {
        const float* upper = maps.data.data() + id * maps.plane() + area(tap.low, maps.width);
        const float* lower = maps.data.data() + id * maps.plane() + area(tap.high, maps.width);
        for (std::size_t x = 0; x < line; ++x) {
          taller.data.push_back(upper[x] + (lower[x] - upper[x]) * tap.share);
        }
      }
    }
    maps = std::move(taller);
  }
  if (maps.width != width) {
    fill_taps(maps.width, width, align_corners, taps);
    ClassScores wider{maps.classes, maps.height, width, {}};
    wider.data.reserve(classes * wider.plane());
    const std::size_t lines = classes * static_cast<std::size_t>(maps.height);
    for (std::size_t row = 0; row < lines; ++row) {
      const float* line = maps.data.data() + row * static_cast<std::size_t>(maps.width);
      for (const Tap& tap : taps) {
        wider.data.push_back(line[tap.low] + (line[tap.high] - line[tap.low]) * tap.share);
      }
    }
    maps = std::move(wider);
  }
  return maps;
}

ClassScores mirrored(ClassScores maps) {
  for (auto line = maps.data.begin(); line != maps.data.end(); line += maps.width) {
    std::reverse(line, line + maps.width);
  }
  return maps;
}

void add(ClassScores& total, const ClassScores& other) {
  for (std::size_t at = 0; at < total.data.size(); ++at) total.data[at] += other.data[at];
}

void take_larger(ClassScores& total, const ClassScores& other) {
  for (std::size_t at = 0; at < total.data.size(); ++at) {
    float& value = total.data[at];
    const float rival = other.data[at];
    value = rival > value || std::isnan(rival) ? rival : value;  // as in numpy, NaN is the largest
  }
}

void softmax(ClassScores& logits) {
  const std::size_t plane = logits.plane();
  std::vector<float> tops(logits.data.begin(), logits.data.begin() + static_cast<long>(plane));
  std::vector<float> sums(plane, 0.0F);
  for (std::size_t at = plane; at < logits.data.size(); ++at) {
    tops[at % plane] = std::max(tops[at % plane], logits.data[at]);
  }
  for (std::size_t at = 0; at < logits.data.size(); ++at) {
    logits.data[at] = std::exp(logits.data[at] - tops[at % plane]);
    sums[at % plane] += logits.data[at];
  }
  for (std::size_t at = 0; at < logits.data.size(); ++at) logits.data[at] /= sums[at % plane];
}

}  // namespace segdeploy
