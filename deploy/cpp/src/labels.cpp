#include "labels.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace segdeploy {
namespace {

std::size_t area(int height, int width) {
  return static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
}

}  // namespace

// numpy's arithmetic: places in float64, shares in float32.
void Labeller::prepare_taps(Axis& axis, int source, int target) {
  if (axis.source == source && axis.target == target) return;
  axis.source = source;
  axis.target = target;
  axis.taps.clear();
  const double scale = static_cast<double>(source) / target;
  for (int place = 0; place < target; ++place) {
    const double centre = std::clamp((place + 0.5) * scale - 0.5, 0.0, source - 1.0);
    const int low = static_cast<int>(std::floor(centre));
    axis.taps.push_back({low, std::min(low + 1, source - 1), static_cast<float>(centre - low)});
  }
}

// PyTorch's arithmetic, in float32.
void Labeller::prepare_cells(Axis& axis, int source, int target, bool align_corners) {
  if (axis.source == source && axis.target == target && axis.align_corners == align_corners) return;
  axis.source = source;
  axis.target = target;
  axis.align_corners = align_corners;
  axis.cells.clear();
  axis.shares.resize(static_cast<std::size_t>(target));
  float scale = static_cast<float>(source) / static_cast<float>(target);
  if (align_corners) {
    scale = target > 1 ? static_cast<float>(source - 1) / static_cast<float>(target - 1) : 0.0F;
  }
  int before = source + 1;
  for (int place = 0; place < target; ++place) {
    float at = static_cast<float>(place);
    at = align_corners ? at * scale : (at + 0.5F) * scale - 0.5F;
    const int index = static_cast<int>(std::min(std::floor(at), static_cast<float>(source - 1)));
    const int low = std::max(index, 0);
    if (index != before) {
      axis.cells.push_back({low, std::min(index + 1, source - 1), place, place});
      before = index;
    }
    axis.cells.back().to = place + 1;
    axis.shares[static_cast<std::size_t>(place)] =
        std::clamp(at - static_cast<float>(low), 0.0F, 1.0F);
  }
}

// The best class of each pixel of the small map; the first of several that are equal.
void Labeller::find_leaders(const Scores& scores) {
  const std::size_t pixels = area(scores.height, scores.width);
  best_.assign(scores.data, scores.data + pixels);
  leaders_.assign(pixels, 0);
  for (int id = 1; id < scores.classes; ++id) {
    const float* plane = scores.data + static_cast<std::size_t>(id) * pixels;
    for (std::size_t at = 0; at < pixels; ++at) {
      const bool leads = plane[at] > best_[at];
      best_[at] = leads ? plane[at] : best_[at];
      leaders_[at] = leads ? static_cast<std::uint8_t>(id) : leaders_[at];
    }
  }
}

void Labeller::find_rivals(const Scores& scores, const std::array<std::size_t, 4>& places) {
  const std::size_t pixels = area(scores.height, scores.width);
  const float* plane = scores.data;
  float floor = -INFINITY;
  for (int id = 0; id < scores.classes; ++id, plane += pixels) {
    floor = std::max(floor, std::min(std::min(plane[places[0]], plane[places[1]]),
                                     std::min(plane[places[2]], plane[places[3]])));
  }
  rivals_.clear();
  float first[4] = {};
  plane = scores.data;
  for (int id = 0; id < scores.classes; ++id, plane += pixels) {
    const float corners[4] = {plane[places[0]], plane[places[1]], plane[places[2]],
                              plane[places[3]]};
    if (*std::max_element(corners, corners + 4) < floor) continue;
    if (rivals_.empty()) std::copy(corners, corners + 4, first);
    Rival rival{static_cast<std::uint8_t>(id), {}};
    for (int corner = 0; corner < 4; ++corner) {
      rival.lead[corner] = corners[corner] - first[corner];
    }
    rivals_.push_back(rival);
  }
}

void Labeller::settle(const Cell& row, const Cell& column, int width, std::uint8_t* labels) {
  const auto count = static_cast<std::size_t>(column.to - column.from);
  const float* across = cell_columns_.shares.data() + column.from;
  // Along the cell's upper and lower edge, for each rival but the first, whose lead is nothing.
  edges_.resize(2 * rivals_.size() * count);
  for (std::size_t k = 1; k < rivals_.size(); ++k) {
    const float* lead = rivals_[k].lead;
    float* upper = edges_.data() + 2 * k * count;
    for (std::size_t x = 0; x < count; ++x) {
      upper[x] = lead[0] * (1 - across[x]) + lead[1] * across[x];
      upper[count + x] = lead[2] * (1 - across[x]) + lead[3] * across[x];
    }
  }
  for (int y = row.from; y < row.to; ++y) {
    std::uint8_t* out = labels + area(y, width) + column.from;
    const float down = cell_rows_.shares[static_cast<std::size_t>(y)];
    leads_.assign(count, 0.0F);
    std::fill(out, out + count, rivals_[0].id);
    for (std::size_t k = 1; k < rivals_.size(); ++k) {
      const float* upper = edges_.data() + 2 * k * count;
      for (std::size_t x = 0; x < count; ++x) {
        const float value = upper[x] * (1 - down) + upper[count + x] * down;
        const bool leads = value > leads_[x];
        leads_[x] = leads ? value : leads_[x];
        out[x] = leads ? rivals_[k].id : out[x];
      }
    }
  }
}

void Labeller::best_classes(const Scores& scores, int height, int width,
                            std::vector<std::uint8_t>& labels) {
  labels.resize(area(height, width));
  const std::size_t plane = area(scores.height, scores.width);
  prepare_taps(tap_rows_, scores.height, height);
  prepare_taps(tap_columns_, scores.width, width);
  line_.resize(static_cast<std::size_t>(scores.width));
  best_.resize(static_cast<std::size_t>(width));
  for (int row = 0; row < height; ++row) {
    const Tap& tap = tap_rows_.taps[static_cast<std::size_t>(row)];
    std::uint8_t* out = labels.data() + area(row, width);
    for (int id = 0; id < scores.classes; ++id) {
      const float* map = scores.data + static_cast<std::size_t>(id) * plane;
      const float* upper = map + area(tap.low, scores.width);
      const float* lower = map + area(tap.high, scores.width);
      const float* line = upper;
      if (scores.height != height) {
        for (std::size_t x = 0; x < line_.size(); ++x) {
          line_[x] = upper[x] + (lower[x] - upper[x]) * tap.share;
        }
        line = line_.data();
      }
      const auto claim = [&](std::size_t x, float value) {
        const bool leads = id == 0 || value > best_[x];
        best_[x] = leads ? value : best_[x];
        out[x] = leads ? static_cast<std::uint8_t>(id) : out[x];
      };
      if (scores.width == width) {
        for (std::size_t x = 0; x < best_.size(); ++x) claim(x, line[x]);
        continue;
      }
      for (std::size_t x = 0; x < best_.size(); ++x) {
        const Tap& near = tap_columns_.taps[x];
        claim(x, line[near.low] + (line[near.high] - line[near.low]) * near.share);
      }
    }
  }
}

void Labeller::best_classes_of_small_map(const Scores& scores, int height, int width,
                                         bool align_corners, std::vector<std::uint8_t>& labels) {
  labels.resize(area(height, width));
  prepare_cells(cell_rows_, scores.height, height, align_corners);
  prepare_cells(cell_columns_, scores.width, width, align_corners);
  find_leaders(scores);
  for (const Cell& row : cell_rows_.cells) {
    const std::size_t upper = area(row.low, scores.width);
    const std::size_t lower = area(row.high, scores.width);
    std::uint8_t* line = labels.data() + area(row.from, width);
    mixed_.clear();
    for (const Cell& column : cell_columns_.cells) {
      const std::uint8_t first = leaders_[upper + static_cast<std::size_t>(column.low)];
      std::fill(line + column.from, line + column.to, first);
      if (first != leaders_[upper + static_cast<std::size_t>(column.high)] ||
          first != leaders_[lower + static_cast<std::size_t>(column.low)] ||
          first != leaders_[lower + static_cast<std::size_t>(column.high)]) {
        mixed_.push_back(&column);
      }
    }
    for (int y = row.from + 1; y < row.to; ++y) {
      std::copy(line, line + width, labels.data() + area(y, width));
    }
    for (const Cell* column : mixed_) {
      const auto low = static_cast<std::size_t>(column->low);
      const auto high = static_cast<std::size_t>(column->high);
      find_rivals(scores, {upper + low, upper + high, lower + low, lower + high});
      settle(row, *column, width, labels.data());
    }
  }
}

void resize_nearest(const std::uint8_t* labels, int height, int width, int to_height, int to_width,
                    std::vector<std::uint8_t>& resized) {
  resized.resize(area(to_height, to_width));
  const auto place = [](int at, int source, int target) {
    return static_cast<int>((at + 0.5) * source / target);
  };
  for (int y = 0; y < to_height; ++y) {
    const std::uint8_t* line = labels + area(place(y, height, to_height), width);
    std::uint8_t* out = resized.data() + area(y, to_width);
    for (int x = 0; x < to_width; ++x) out[x] = line[place(x, width, to_width)];
  }
}

}  // namespace segdeploy
