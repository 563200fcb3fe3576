// From the network's output to labels of the picture's own size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "contract.hpp"
#include "maps.hpp"

namespace segdeploy {

// Scores (classes, height, width) of one picture.
struct Scores {
  const float* data;
  int classes;
  int height;
  int width;
};

// Labels are written where the caller has room for them: height x width bytes.
//
// Keeps what belongs to the last sizes, and its memory: the next picture allocates nothing.
class Labeller {
 public:
  // Upsamples bilinearly, pixel centres at half, then takes the best class: (height, width).
  void best_classes(const Scores& scores, int height, int width, std::uint8_t* labels);

  // The same without the upsampled map. Bilinear values are convex combinations of a cell's four
  // corners: a class that leads at all four leads in the cell, and only other cells are
  // interpolated, for the classes that reach at some corner what another has at every corner.
  void best_classes_of_small_map(const Scores& scores, int height, int width, bool align_corners,
                                 std::uint8_t* labels);

  std::vector<std::uint8_t> small;  // labels on their way to another size

 private:
  // Along one axis, a run of outputs between the same two neighbours. Before the first index and
  // beyond the last, values are clamped: there both neighbours are one.
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
    std::vector<float> shares;  // of the second neighbour, by output
  };
  // A class that may win somewhere in a cell, by its lead over the first such class at each corner.
  struct Rival {
    std::uint8_t id;
    float lead[4];  // upper left, upper right, lower left, lower right
  };

  static void prepare_taps(Axis& axis, int source, int target);
  static void prepare_cells(Axis& axis, int source, int target, bool align_corners);
  void find_leaders(const Scores& scores);
  void find_rivals(const Scores& scores, const std::array<std::size_t, 4>& places);
  void settle(const Cell& row, const Cell& column, int width, std::uint8_t* labels);

  Axis tap_rows_, tap_columns_, cell_rows_, cell_columns_;
  std::vector<float> line_, values_, best_, edges_;
  std::vector<std::int32_t> found_;
  std::vector<std::uint8_t> leaders_;
  std::vector<std::array<float, 4>> corners_;
  std::vector<Rival> rivals_;
  std::vector<const Cell*> mixed_;
};

// Labels of a picture (height, width), as the contract says: of scores of its size, or of a small map.
void label_scores(const Contract& contract, const Scores& scores, int height, int width,
                  Labeller& labeller, std::uint8_t* labels);

// Nearest neighbour, pixel centres at half, of labels (height, width).
void resize_nearest(const std::uint8_t* labels, int height, int width, int to_height, int to_width,
                    std::uint8_t* resized);

}  // namespace segdeploy
