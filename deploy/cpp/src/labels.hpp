// Postprocessing: from the network's output to labels at the image's own size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "class_scores.hpp"
#include "contract.hpp"

namespace segdeploy {

// Scores (classes, height, width) of one image.
struct Scores {
  const float* data;
  int classes;
  int height;
  int width;
};

// Computes labels, and writes them into the caller's memory: height x width bytes.
//
// The tables for the last sizes and all buffers are kept, so that the next image of the same sizes
// allocates nothing.
class Labeller {
 public:
  // Upsample bilinearly with half-pixel centers, then take the best class: (height, width).
  void best_classes(const Scores& scores, int height, int width, std::uint8_t* labels);

  // As best_classes, without computing the upsampled scores. A bilinear value is a convex
  // combination of the four corners of its cell, so a class that leads at all four corners leads in
  // the whole cell. Only other cells are interpolated, and only for the candidate classes: those
  // whose largest corner score reaches the smallest corner score of every class.
  void best_classes_of_low_resolution(const Scores& scores, int height, int width,
                                      bool align_corners, std::uint8_t* labels);

  std::vector<std::uint8_t> small;  // labels at the contract's size, before their resize

 private:
  // A run of outputs along one axis between the same two neighbors. Before the first index and
  // beyond the last index, values are clamped: both neighbors are the same index.
  struct Cell {
    int low;
    int high;
    int from;
    int to;
  };
  struct Axis {
    int source = 0;
    int target = 0;
    bool align_corners = false;
    std::vector<Tap> taps;
    std::vector<Cell> cells;
    std::vector<float> shares;  // weight of the second neighbor, per output
  };
  // A candidate class of a cell, with its lead over the first candidate at each corner.
  struct Candidate {
    std::uint8_t id;
    float lead[4];  // upper left, upper right, lower left, lower right
  };

  static void prepare_taps(Axis& axis, int source, int target);
  static void prepare_cells(Axis& axis, int source, int target, bool align_corners);
  void find_leaders(const Scores& scores);
  void find_candidates(const Scores& scores, const std::array<std::size_t, 4>& places);
  void interpolate_cell(const Cell& row, const Cell& column, int width, std::uint8_t* labels);

  Axis tap_rows_, tap_columns_, cell_rows_, cell_columns_;
  std::vector<float> line_, values_, best_, edges_;
  std::vector<std::int32_t> found_;
  std::vector<std::uint8_t> leaders_;
  std::vector<std::array<float, 4>> corners_;
  std::vector<Candidate> candidates_;
  std::vector<const Cell*> cells_to_interpolate_;
};

// Compute the labels of an image (height, width) as the contract states: from scores, or from
// low-resolution logits.
void label_scores(const Contract& contract, const Scores& scores, int height, int width,
                  Labeller& labeller, std::uint8_t* labels);

// Resize labels (height, width) by nearest neighbor with half-pixel centers.
void resize_nearest(const std::uint8_t* labels, int height, int width, int to_height, int to_width,
                    std::uint8_t* resized);

}  // namespace segdeploy
