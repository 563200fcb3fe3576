// Pillow's bilinear resize of bytes, to the last bit. Where it shrinks, it averages (antialiasing).
#pragma once

#include <cstdint>
#include <vector>

namespace segdeploy {

// `source` is (height, width, 3) bytes without gaps; `target` becomes (to_height, to_width, 3).
void resize_bilinear(const std::vector<std::uint8_t>& source, int height, int width,
                     std::vector<std::uint8_t>& target, int to_height, int to_width);

}  // namespace segdeploy
