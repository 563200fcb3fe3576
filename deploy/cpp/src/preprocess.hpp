// From a picture to the network's input, as the contract says.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "contract.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// Checks a view, and makes (height, width, 3) bytes without gaps in RGB order of it. Throws Error.
void gather(const ImageView& image, std::vector<std::uint8_t>& rgb);

class Preprocessor {
 public:
  explicit Preprocessor(const Contract& contract);

  // (1, 3, H, W) floats of the picture.
  void floats(const ImageView& image, std::vector<float>& input) const;
  // (1, H, W, 3) bytes, for a graph that normalises.
  void bytes(const ImageView& image, std::vector<std::uint8_t>& input) const;

 private:
  int height_;
  int width_;
  bool is_bgr_;
  // A byte has 256 values: what each becomes, by channel of the network.
  std::array<std::array<float, 256>, 3> normalised_{};
};

}  // namespace segdeploy
