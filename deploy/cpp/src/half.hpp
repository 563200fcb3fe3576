// Conversion between FP16 (IEEE binary16) and float32, rounded to nearest, ties to even.
#pragma once

#include <cstddef>
#include <cstdint>

namespace segdeploy {

void to_half(const float* from, std::uint16_t* to, std::size_t count);
void from_half(const std::uint16_t* from, float* to, std::size_t count);

}  // namespace segdeploy
