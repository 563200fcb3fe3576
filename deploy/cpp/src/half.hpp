// Half precision (IEEE binary16) from and to float32, rounded to the nearest, ties to even.
#pragma once

#include <cstddef>
#include <cstdint>

namespace segdeploy {

void to_half(const float* from, std::uint16_t* to, std::size_t count);
void from_half(const std::uint16_t* from, float* to, std::size_t count);

}  // namespace segdeploy
