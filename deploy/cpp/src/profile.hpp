// An optimisation profile: the inputs that a dynamic network takes.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

namespace segdeploy {

using Shape = std::array<int, 3>;  // pictures, height, width

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

}  // namespace segdeploy
