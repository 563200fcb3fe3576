// Several runs of a network for one picture: at several scales, mirrored, or in tiles.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "contract.hpp"
#include "maps.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// Scores (classes, h, w) of one input (3, H, W) floats.
using RunMaps = std::function<Maps(const Maps& input)>;

// A size times `scale`, rounded down to a multiple; 1/3 is told from 0.333 by fractions up to 1000, as in Python.
std::array<int, 2> scaled_size(int height, int width, double scale, int multiple);

// Logits fused over the scales of `input` (3, H, W), and over the mirrored picture, at its size.
Maps fused_logits(const RunMaps& run, const Maps& input, const Passes& passes, int multiple);

// Where windows begin along `length` pixels: evenly, overlapping by a third.
std::vector<int> starts(int length, int window);

// What the windows of a picture are joined to: scores averaged by their distance from the window's
// edge, or of labels those of the window in whose middle a pixel lies most.
class Joined {
 public:
  Joined(int height, int width, int window_height, int window_width);

  void add_scores(const Maps& found, int top, int left);
  void add_labels(const std::vector<std::uint8_t>& found, int top, int left);

  // Scores, or labels, of the first `height` rows and `width` columns.
  Maps scores(int height, int width) const;
  std::vector<std::uint8_t> labels(int height, int width) const;

 private:
  float weight(int row, int column) const;

  int height_, width_, window_height_, window_width_;
  std::vector<float> weights_;
  Maps scores_;
  std::vector<std::uint8_t> labels_;
};

}  // namespace segdeploy
