// Pillow's bilinear resize of bytes, to the last bit. Where it shrinks, it averages (antialiasing).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace segdeploy {

// Along one axis: the first source place of each output, and its weights in fixed point.
struct Filter {
  struct Tap {
    int first;
    int count;
    std::size_t weights;  // where they begin
  };
  int source = 0;
  int target = 0;
  std::vector<Tap> taps;
  std::vector<std::int32_t> weights;

  // Keeps what it has where the lengths are the last ones; says whether they are others.
  bool prepare(int from, int to);

 private:
  std::vector<double> shares_;
};

// Each pass rounds to bytes, so their order counts. Pillow 13 shrinks the rows first where that saves
// more (found by trying 876 sizes; earlier versions always begin with the columns).
bool is_down_first(int height, int width, int to_height, int to_width);

// Keeps the weights of the last size, and its memory: a second picture of one size allocates nothing.
class Resizer {
 public:
  // `source` is (height, width, 3) bytes without gaps; `target` becomes (to_height, to_width, 3).
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
