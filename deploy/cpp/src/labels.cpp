#include "labels.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "vectors.hpp"

namespace segdeploy {
namespace {

constexpr std::size_t kBlock = 8;

}  // namespace

void Labeller::prepare_taps(Axis& axis, int source, int target) {
  if (axis.source == source && axis.target == target) return;
  axis.target = 0;  // invalid until the taps are complete
  fill_taps(source, target, /*align_corners=*/false, axis.taps);
  axis.source = source;
  axis.target = target;
}

// As in PyTorch's arithmetic, all values are float32.
void Labeller::prepare_cells(Axis& axis, int source, int target, bool align_corners) {
  if (axis.source == source && axis.target == target && axis.align_corners == align_corners) return;
  axis.target = 0;  // invalid until the cells are complete
  axis.cells.clear();
  axis.shares.resize(static_cast<std::size_t>(target) + kBlock);  // a block may read past the end
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
  axis.align_corners = align_corners;
  axis.source = source;
  axis.target = target;
}

// Find the best class of each pixel of the low-resolution logits. The first class wins a tie.
SEGDEPLOY_VECTORS void Labeller::find_leaders(const Scores& scores) {
  const std::size_t pixels = area(scores.height, scores.width);
  best_.assign(scores.data, scores.data + pixels);
  found_.assign(pixels, 0);
  leaders_.resize(pixels);
  float* best = best_.data();
  std::int32_t* found = found_.data();
  for (std::int32_t id = 1; id < scores.classes; ++id) {
    const float* plane = scores.data + static_cast<std::size_t>(id) * pixels;
    for (std::size_t at = 0; at < pixels; ++at) {
      found[at] = plane[at] > best[at] ? id : found[at];
      best[at] = plane[at] > best[at] ? plane[at] : best[at];
    }
  }
  for (std::size_t at = 0; at < pixels; ++at) leaders_[at] = static_cast<std::uint8_t>(found[at]);
}

void Labeller::find_candidates(const Scores& scores, const std::array<std::size_t, 4>& places) {
  const std::size_t pixels = area(scores.height, scores.width);
  corners_.resize(static_cast<std::size_t>(scores.classes));
  const float* plane = scores.data;
  float floor = -INFINITY;
  for (auto& corners : corners_) {
    corners = {plane[places[0]], plane[places[1]], plane[places[2]], plane[places[3]]};
    floor = std::max(floor,
                     std::min(std::min(corners[0], corners[1]), std::min(corners[2], corners[3])));
    plane += pixels;
  }
  candidates_.clear();
  const std::array<float, 4>* first = nullptr;
  for (std::size_t id = 0; id < corners_.size(); ++id) {
    const auto& corners = corners_[id];
    if (std::max(std::max(corners[0], corners[1]), std::max(corners[2], corners[3])) < floor) {
      continue;
    }
    if (first == nullptr) first = &corners;
    Candidate rival{static_cast<std::uint8_t>(id), {}};
    for (std::size_t corner = 0; corner < 4; ++corner) {
      rival.lead[corner] = corners[corner] - (*first)[corner];
    }
    candidates_.push_back(rival);
  }
}

SEGDEPLOY_VECTORS void Labeller::interpolate_cell(const Cell& row, const Cell& column, int width,
                                                  std::uint8_t* labels) {
  const auto wide = static_cast<std::size_t>(column.to - column.from);
  const float* across = cell_columns_.shares.data() + column.from;
  // Cells are only a few pixels wide. Blocks of a fixed length, of which the last is cut,
  // fill the SIMD vectors.
  for (std::size_t begin = 0; begin < wide; begin += kBlock) {
    const std::size_t count = std::min(kBlock, wide - begin);
    // Interpolate along the block's upper and lower edges, for each candidate but the first, whose
    // lead is 0.
    edges_.resize(2 * candidates_.size() * kBlock);
    for (std::size_t k = 1; k < candidates_.size(); ++k) {
      const float* lead = candidates_[k].lead;
      float* upper = edges_.data() + 2 * k * kBlock;
      float* lower = upper + kBlock;
      for (std::size_t x = 0; x < kBlock; ++x) {
        const float share = across[begin + x];
        upper[x] = lead[0] * (1 - share) + lead[1] * share;
        lower[x] = lead[2] * (1 - share) + lead[3] * share;
      }
    }
    std::uint8_t* out = labels + area(row.from, width) + column.from + begin;
    for (int y = row.from; y < row.to; ++y, out += width) {
      const float down = cell_rows_.shares[static_cast<std::size_t>(y)];
      float best[kBlock] = {};
      std::int32_t found[kBlock];
      for (auto& id : found) id = candidates_[0].id;
      for (std::size_t k = 1; k < candidates_.size(); ++k) {
        const float* upper = edges_.data() + 2 * k * kBlock;
        const float* lower = upper + kBlock;
        const std::int32_t id = candidates_[k].id;
        for (std::size_t x = 0; x < kBlock; ++x) {
          const float value = upper[x] * (1 - down) + lower[x] * down;
          found[x] = value > best[x] ? id : found[x];
          best[x] = value > best[x] ? value : best[x];
        }
      }
      for (std::size_t x = 0; x < count; ++x) out[x] = static_cast<std::uint8_t>(found[x]);
    }
  }
}

SEGDEPLOY_VECTORS void Labeller::best_classes(const Scores& scores, int height, int width,
                                              std::uint8_t* labels) {
  const std::size_t plane = area(scores.height, scores.width);
  const auto wide = static_cast<std::size_t>(width);
  prepare_taps(tap_rows_, scores.height, height);
  prepare_taps(tap_columns_, scores.width, width);
  line_.resize(static_cast<std::size_t>(scores.width));
  values_.resize(wide);
  best_.resize(wide);
  found_.resize(wide);
  for (int row = 0; row < height; ++row) {
    const Tap& tap = tap_rows_.taps[static_cast<std::size_t>(row)];
    for (int id = 0; id < scores.classes; ++id) {
      const float* map = scores.data + static_cast<std::size_t>(id) * plane;
      const float* values = map + area(tap.low, scores.width);
      if (scores.height != height) {
        const float* lower = map + area(tap.high, scores.width);
        for (std::size_t x = 0; x < line_.size(); ++x) {
          line_[x] = values[x] + (lower[x] - values[x]) * tap.share;
        }
        values = line_.data();
      }
      if (scores.width != width) {
        for (std::size_t x = 0; x < wide; ++x) {
          const Tap& near = tap_columns_.taps[x];
          values_[x] = values[near.low] + (values[near.high] - values[near.low]) * near.share;
        }
        values = values_.data();
      }
      if (id == 0) {
        std::copy(values, values + wide, best_.begin());
        std::fill(found_.begin(), found_.end(), 0);
        continue;
      }
      float* best = best_.data();
      std::int32_t* found = found_.data();
      for (std::size_t x = 0; x < wide; ++x) {
        found[x] = values[x] > best[x] ? id : found[x];
        best[x] = values[x] > best[x] ? values[x] : best[x];
      }
    }
    std::uint8_t* out = labels + area(row, width);
    for (std::size_t x = 0; x < wide; ++x) out[x] = static_cast<std::uint8_t>(found_[x]);
  }
}

SEGDEPLOY_VECTORS void Labeller::best_classes_of_low_resolution(const Scores& scores, int height,
                                                                int width, bool align_corners,
                                                                std::uint8_t* labels) {
  prepare_cells(cell_rows_, scores.height, height, align_corners);
  prepare_cells(cell_columns_, scores.width, width, align_corners);
  find_leaders(scores);
  for (const Cell& row : cell_rows_.cells) {
    const std::size_t upper = area(row.low, scores.width);
    const std::size_t lower = area(row.high, scores.width);
    std::uint8_t* line = labels + area(row.from, width);
    cells_to_interpolate_.clear();
    for (const Cell& column : cell_columns_.cells) {
      const std::uint8_t first = leaders_[upper + static_cast<std::size_t>(column.low)];
      std::fill(line + column.from, line + column.to, first);
      if (first != leaders_[upper + static_cast<std::size_t>(column.high)] ||
          first != leaders_[lower + static_cast<std::size_t>(column.low)] ||
          first != leaders_[lower + static_cast<std::size_t>(column.high)]) {
        cells_to_interpolate_.push_back(&column);
      }
    }
    for (int y = row.from + 1; y < row.to; ++y) {
      std::copy(line, line + width, labels + area(y, width));
    }
    for (const Cell* column : cells_to_interpolate_) {
      const auto low = static_cast<std::size_t>(column->low);
      const auto high = static_cast<std::size_t>(column->high);
      find_candidates(scores, {upper + low, upper + high, lower + low, lower + high});
      interpolate_cell(row, *column, width, labels);
    }
  }
}

void label_scores(const Contract& contract, const Scores& scores, int height, int width,
                  Labeller& labeller, std::uint8_t* labels) {
  if (contract.upsampling == Upsampling::none) {
    labeller.best_classes(scores, height, width, labels);
    return;
  }
  const bool align_corners = contract.upsampling == Upsampling::align_corners;
  if (height == contract.height && width == contract.width) {
    labeller.best_classes_of_low_resolution(scores, height, width, align_corners, labels);
    return;
  }
  labeller.small.resize(area(contract.height, contract.width));
  labeller.best_classes_of_low_resolution(scores, contract.height, contract.width, align_corners,
                                          labeller.small.data());
  resize_nearest(labeller.small.data(), contract.height, contract.width, height, width, labels);
}

void resize_nearest(const std::uint8_t* labels, int height, int width, int to_height, int to_width,
                    std::uint8_t* resized) {
  const auto place = [](int at, int source, int target) {
    return static_cast<int>((at + 0.5) * source / target);
  };
  for (int y = 0; y < to_height; ++y) {
    const std::uint8_t* line = labels + area(place(y, height, to_height), width);
    std::uint8_t* out = resized + area(y, to_width);
    for (int x = 0; x < to_width; ++x) out[x] = line[place(x, width, to_width)];
  }
}

}  // namespace segdeploy
