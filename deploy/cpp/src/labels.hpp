// From the network's output to labels of the picture's own size.
#pragma once

#include <cstdint>
#include <vector>

#include "contract.hpp"

namespace segdeploy {

// Scores (classes, height, width) of one picture.
struct Scores {
  const float* data;
  int classes;
  int height;
  int width;
};

// Upsamples bilinearly, pixel centres at half, then takes the best class: `labels` (height, width).
void best_classes(const Scores& scores, int height, int width, std::vector<std::uint8_t>& labels);

// The same without the upsampled map: only cells whose four corners disagree are interpolated.
void best_classes_of_small_map(const Scores& scores, int height, int width, bool align_corners,
                               std::vector<std::uint8_t>& labels);

// Nearest neighbour, pixel centres at half, of labels (height, width).
void resize_nearest(const std::uint8_t* labels, int height, int width, int to_height, int to_width,
                    std::vector<std::uint8_t>& resized);

}  // namespace segdeploy
