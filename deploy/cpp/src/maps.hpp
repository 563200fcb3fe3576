// Maps of class scores on the CPU, for what a single run does not give.
#pragma once

#include <cstddef>
#include <vector>

#include "shape.hpp"

namespace segdeploy {

struct Maps {
  int classes = 0;
  int height = 0;
  int width = 0;
  std::vector<float> data;  // (classes, height, width)

  std::size_t plane() const { return area(height, width); }
};

// Where an output lies between two neighbours of a line, and the second one's share: numpy's
// arithmetic, places in float64 and shares in float32.
struct Tap {
  int low;
  int high;
  float share;
};

// Those of bilinear resizing, into `taps`: pixel centres at half, unless `align_corners`.
void fill_taps(int source, int target, bool align_corners, std::vector<Tap>& taps);

// Bilinear resize with numpy's arithmetic: pixel centres at half, unless `align_corners`.
Maps upsample(Maps maps, int height, int width, bool align_corners);

// The same maps, each line backwards.
Maps mirrored(Maps maps);

// Adds other maps of the same shape, or takes the larger value of each pixel.
void add(Maps& total, const Maps& other);
void take_larger(Maps& total, const Maps& other);

// Probabilities of logits; they sum to 1 a pixel.
void softmax(Maps& logits);

}  // namespace segdeploy
