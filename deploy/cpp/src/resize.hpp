// Bilinear resize of bytes, equal to Pillow's to the last bit. Downscaling averages (antialiasing).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace segdeploy {

// The filter along one axis: the first source index and the fixed-point weights of each output.
struct Filter {
  struct Tap {
    int first;
    int count;
    std::size_t weights;  // index of the first weight
  };
  int source = 0;
  int target = 0;
  std::vector<Tap> taps;
  std::vector<std::int32_t> weights;

  // Compute the filter, unless the lengths are unchanged. Returns whether it was computed.
  bool prepare(int from, int to);

 private:
  std::vector<double> shares_;
};

// Return whether the vertical pass runs first. Each pass rounds to bytes, so the order of the
// passes affects the result. Pillow 13 reduces the number of rows first if that saves more
// (determined by trying 876 sizes). Earlier versions always begin with the columns.
bool is_down_first(int height, int width, int to_height, int to_width);

// Keeps the weights of the last size and all buffers, so that a second image of the same size
// allocates nothing.
class Resizer {
 public:
  // Resize `source`, contiguous (height, width, 3) bytes, to `target` (to_height, to_width, 3).
  void run(const std::vector<std::uint8_t>& source, int height, int width,
           std::vector<std::uint8_t>& target, int to_height, int to_width);

 private:
  void columns(const std::uint8_t* source, int height, int width, std::uint8_t* target);
  void rows(const std::uint8_t* source, int width, std::uint8_t* target);

  Filter across_;
  Filter down_;
  std::vector<std::int32_t> sums_;
  std::vector<std::uint8_t> between_;
};

}  // namespace segdeploy
