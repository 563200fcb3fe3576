// Operations on class scores on the CPU, for multi-scale, flip and tiled inference, and for
// probabilities.
#pragma once

#include <cstddef>
#include <vector>

#include "shape.hpp"

namespace segdeploy {

struct ClassScores {
  int classes = 0;
  int height = 0;
  int width = 0;
  std::vector<float> data;  // (classes, height, width)

  std::size_t plane() const { return area(height, width); }
};

// The two neighbors of an output along one axis, and the weight of the second neighbor. As in
// numpy's arithmetic, positions are float64 and weights are float32.
struct Tap {
  int low;
  int high;
  float share;
};

// Fill `taps` for a bilinear resize along one axis, with half-pixel centers unless `align_corners`.
void fill_taps(int source, int target, bool align_corners, std::vector<Tap>& taps);

// Resize bilinearly with numpy's arithmetic, with half-pixel centers unless `align_corners`.
ClassScores upsample(ClassScores maps, int height, int width, bool align_corners);

// Mirror the scores horizontally.
ClassScores mirrored(ClassScores maps);

// Add other scores of the same shape, or take the elementwise maximum.
void add(ClassScores& total, const ClassScores& other);
void take_larger(ClassScores& total, const ClassScores& other);

// Convert logits to probabilities, which sum to 1 at each pixel.
void softmax(ClassScores& logits);

}  // namespace segdeploy
