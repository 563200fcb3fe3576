// Maps of class scores on the CPU, for what a single run does not give.
#pragma once

#include <cstddef>
#include <vector>

namespace segdeploy {

struct Maps {
  int classes = 0;
  int height = 0;
  int width = 0;
  std::vector<float> data;  // (classes, height, width)

  std::size_t plane() const {
    return static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  }
};

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
