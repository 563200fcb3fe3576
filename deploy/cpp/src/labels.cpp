#include "labels.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace segdeploy {
namespace {

std::size_t area(int height, int width) {
  return static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
}

struct Tap {
  int low;
  int high;
  float share;
};

std::vector<Tap> taps(int source, int target) {
  std::vector<Tap> found;
  found.reserve(static_cast<std::size_t>(target));
  const double scale = static_cast<double>(source) / target;
  for (int place = 0; place < target; ++place) {
    const double centre = std::clamp((place + 0.5) * scale - 0.5, 0.0, source - 1.0);
    const int low = static_cast<int>(std::floor(centre));
    found.push_back({low, std::min(low + 1, source - 1), static_cast<float>(centre - low)});
  }
  return found;
}

// Along one axis, a run of outputs between the same two neighbours, and each one's share of the
// second. Before the first index and beyond the last, values are clamped: there both are one.
struct Cell {
  int low;
  int high;
  int from;
  int to;
};

struct Cells {
  std::vector<Cell> cells;
  std::vector<float> shares;  // by output
};

// PyTorch's arithmetic, in float32.
Cells make_cells(int source, int target, bool align_corners) {
  Cells made;
  made.shares.resize(static_cast<std::size_t>(target));
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
      made.cells.push_back({low, std::min(index + 1, source - 1), place, place});
      before = index;
    }
    made.cells.back().to = place + 1;
    made.shares[static_cast<std::size_t>(place)] =
        std::clamp(at - static_cast<float>(low), 0.0F, 1.0F);
  }
  return made;
}

// The best class of each pixel of the small map; the first of several that are equal.
std::vector<std::uint8_t> leaders(const Scores& scores) {
  const std::size_t pixels = area(scores.height, scores.width);
  std::vector<float> best(scores.data, scores.data + pixels);
  std::vector<std::uint8_t> found(pixels, 0);
  for (int id = 1; id < scores.classes; ++id) {
    const float* plane = scores.data + static_cast<std::size_t>(id) * pixels;
    for (std::size_t at = 0; at < pixels; ++at) {
      if (plane[at] > best[at]) {
        best[at] = plane[at];
        found[at] = static_cast<std::uint8_t>(id);
      }
    }
  }
  return found;
}

// A class that may win somewhere in a cell, by its lead over the first such class at each corner.
struct Rival {
  std::uint8_t id;
  float lead[4];  // upper left, upper right, lower left, lower right
};

void find_rivals(const Scores& scores, const std::size_t (&places)[4], std::vector<Rival>& rivals) {
  const std::size_t pixels = area(scores.height, scores.width);
  // What some class has at every corner bounds what another must reach at one.
  float floor = -INFINITY;
  for (int id = 0; id < scores.classes; ++id) {
    const float* plane = scores.data + static_cast<std::size_t>(id) * pixels;
    floor = std::max(floor, std::min(std::min(plane[places[0]], plane[places[1]]),
                                     std::min(plane[places[2]], plane[places[3]])));
  }
  rivals.clear();
  float first[4] = {};
  for (int id = 0; id < scores.classes; ++id) {
    const float* plane = scores.data + static_cast<std::size_t>(id) * pixels;
    const float corners[4] = {plane[places[0]], plane[places[1]], plane[places[2]],
                              plane[places[3]]};
    if (*std::max_element(corners, corners + 4) < floor) continue;
    if (rivals.empty()) std::copy(corners, corners + 4, first);
    Rival rival{static_cast<std::uint8_t>(id), {}};
    for (int corner = 0; corner < 4; ++corner) {
      rival.lead[corner] = corners[corner] - first[corner];
    }
    rivals.push_back(rival);
  }
}

}  // namespace

void best_classes(const Scores& scores, int height, int width, std::vector<std::uint8_t>& labels) {
  labels.assign(area(height, width), 0);
  const std::size_t plane = area(scores.height, scores.width);
  const auto rows = taps(scores.height, height);
  const auto columns = taps(scores.width, width);
  std::vector<float> line(static_cast<std::size_t>(scores.width));
  std::vector<float> best(static_cast<std::size_t>(width));
  for (int row = 0; row < height; ++row) {
    const Tap& tap = rows[static_cast<std::size_t>(row)];
    std::uint8_t* out = labels.data() + area(row, width);
    for (int id = 0; id < scores.classes; ++id) {
      const float* map = scores.data + static_cast<std::size_t>(id) * plane;
      const float* upper = map + area(tap.low, scores.width);
      const float* lower = map + area(tap.high, scores.width);
      for (std::size_t x = 0; x < line.size(); ++x) {
        line[x] = scores.height == height ? upper[x] : upper[x] + (lower[x] - upper[x]) * tap.share;
      }
      for (std::size_t x = 0; x < columns.size(); ++x) {
        float value = line[scores.width == width ? x : static_cast<std::size_t>(columns[x].low)];
        if (scores.width != width) {
          value += (line[static_cast<std::size_t>(columns[x].high)] - value) * columns[x].share;
        }
        if (id == 0 || value > best[x]) {
          best[x] = value;
          out[x] = static_cast<std::uint8_t>(id);
        }
      }
    }
  }
}

void best_classes_of_small_map(const Scores& scores, int height, int width, bool align_corners,
                               std::vector<std::uint8_t>& labels) {
  labels.resize(area(height, width));
  const Cells rows = make_cells(scores.height, height, align_corners);
  const Cells columns = make_cells(scores.width, width, align_corners);
  const auto leader = leaders(scores);
  std::vector<Rival> rivals;
  for (const Cell& row : rows.cells) {
    for (const Cell& column : columns.cells) {
      const std::size_t places[4] = {area(row.low, scores.width) + static_cast<std::size_t>(column.low),
                                     area(row.low, scores.width) + static_cast<std::size_t>(column.high),
                                     area(row.high, scores.width) + static_cast<std::size_t>(column.low),
                                     area(row.high, scores.width) + static_cast<std::size_t>(column.high)};
      const std::uint8_t first = leader[places[0]];
      const bool is_mixed =
          first != leader[places[1]] || first != leader[places[2]] || first != leader[places[3]];
      if (is_mixed) find_rivals(scores, places, rivals);
      for (int y = row.from; y < row.to; ++y) {
        std::uint8_t* out = labels.data() + area(y, width);
        if (!is_mixed) {
          std::fill(out + column.from, out + column.to, first);
          continue;
        }
        const float down = rows.shares[static_cast<std::size_t>(y)];
        for (int x = column.from; x < column.to; ++x) {
          const float across = columns.shares[static_cast<std::size_t>(x)];
          float best = 0;  // of the first rival, whose lead over itself is nothing
          std::uint8_t found = rivals[0].id;
          for (std::size_t k = 1; k < rivals.size(); ++k) {
            const float* lead = rivals[k].lead;
            const float upper = lead[0] * (1 - across) + lead[1] * across;
            const float lower = lead[2] * (1 - across) + lead[3] * across;
            const float value = upper * (1 - down) + lower * down;
            if (value > best) {
              best = value;
              found = rivals[k].id;
            }
          }
          out[x] = found;
        }
      }
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
    for (int x = 0; x < to_width; ++x) {
      resized[area(y, to_width) + static_cast<std::size_t>(x)] = line[place(x, width, to_width)];
    }
  }
}

}  // namespace segdeploy
