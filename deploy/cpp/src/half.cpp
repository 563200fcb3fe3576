#include "half.hpp"

#include <cmath>
#include <cstring>

namespace segdeploy {
namespace {

std::uint16_t half_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  const std::uint32_t size = bits & 0x7FFFFFFF;
  if (size > 0x7F800000) return static_cast<std::uint16_t>(sign | 0x7E00);   // NaN
  if (size >= 0x47800000) return static_cast<std::uint16_t>(sign | 0x7C00);  // too large
  if (size < 0x38800000) {
    // Subnormal: adding 0.5 rounds to a multiple of 2^-24, the step of FP16 subnormals, and leaves
    // the result in the lowest bits.
    float magnitude;
    std::memcpy(&magnitude, &size, sizeof magnitude);
    magnitude += 0.5F;
    std::uint32_t sum;
    std::memcpy(&sum, &magnitude, sizeof sum);
    return static_cast<std::uint16_t>(sign | (sum - 0x3F000000));
  }
  const std::uint32_t rounded = size + 0xFFF + (size >> 13 & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

float float_of(std::uint16_t half) {
  const int exponent = half >> 10 & 0x1F;
  const int fraction = half & 0x3FF;
  float value;
  if (exponent == 0) {
    value = std::ldexp(static_cast<float>(fraction), -24);
  } else if (exponent == 31) {
    value = fraction != 0 ? NAN : INFINITY;
  } else {
    value = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  }
  return (half & 0x8000) != 0 ? -value : value;
}

}  // namespace

void to_half(const float* from, std::uint16_t* to, std::size_t count) {
  for (std::size_t at = 0; at < count; ++at) to[at] = half_of(from[at]);
}

void from_half(const std::uint16_t* from, float* to, std::size_t count) {
  for (std::size_t at = 0; at < count; ++at) to[at] = float_of(from[at]);
}

}  // namespace segdeploy
