// Multi-scale, flip and tiled inference: several runs of a network for one image.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "class_scores.hpp"
#include "contract.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// Runs the network on one input of (3, H, W) floats, and returns its scores (classes, h, w).
using RunScores = std::function<ClassScores(const ClassScores& input)>;

// Return a size times `scale`, rounded down to a multiple. As in Python, the scale is taken as a
// fraction with a denominator of at most 1000, so that 1/3 and 0.333 differ.
std::array<int, 2> scaled_size(int height, int width, double scale, int multiple);

// Return the logits of `input` (3, H, W), fused over the scales and the mirrored image, at the size
// of `input`.
ClassScores fused_logits(const RunScores& run, const ClassScores& input,
                         const InferenceOptions& options, int multiple);

// Return the start positions of the windows along `length` pixels. The windows are evenly spaced,
// and overlap by at least a third.
std::vector<int> starts(int length, int window);

// The place of a window in an image, in pixels.
struct Window {
  int top, left, height, width;
};

// Joins the windows of an image. Scores are averaged, weighted by the distance from the window's
// edge. A pixel's label comes from the window in which the pixel is farthest from the edge.
class WindowBlender {
 public:
  WindowBlender(int height, int width, int window_height, int window_width);

  void add_scores(const ClassScores& found, int top, int left);
  void add_labels(const std::vector<std::uint8_t>& found, int top, int left);

  // Return the scores or the labels of the first `height` rows and `width` columns.
  ClassScores scores(int height, int width) const;
  std::vector<std::uint8_t> labels(int height, int width) const;

 private:
  float weight(int row, int column) const;

  int height_, width_, window_height_, window_width_;
  std::vector<float> weights_;
  ClassScores scores_;
  std::vector<std::uint8_t> labels_;
};

}  // namespace segdeploy
