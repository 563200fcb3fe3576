// Sizes of images and inputs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace segdeploy {

using Shape = std::array<int, 3>;  // batch size, height, width

inline std::size_t area(int height, int width) {
  return static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
}

// An optimization profile: the range of input shapes that a dynamic network takes.
struct Profile {
  Shape minimum{};
  Shape optimum{};
  Shape maximum{};

  bool takes(const Shape& shape) const {
    for (std::size_t side = 0; side < shape.size(); ++side) {
      if (shape[side] < minimum[side] || shape[side] > maximum[side]) return false;
    }
    return true;
  }
};

// A dimension of a network's input or output: its size, or its name if the size is open.
struct Side {
  std::int64_t size = -1;
  std::string name = "any";

  bool is_open() const { return size < 0; }
};
using Sides = std::vector<Side>;

}  // namespace segdeploy
