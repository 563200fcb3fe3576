// From a picture to the network's input, as the contract says.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "contract.hpp"
#include "resize.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// What a picture passes through; its memory is used again for the next one.
struct Prepared {
  std::vector<std::uint8_t> rgb;
  std::vector<std::uint8_t> bytes;  // (H, W, 3), for a graph that normalises
  std::vector<float> floats;        // (3, H, W)
  Resizer resizer;
};

class Preprocessor {
 public:
  explicit Preprocessor(const Contract& contract);

  // Fills `bytes`, and `floats` where the network takes those. Throws Error for a bad view.
  void run(const ImageView& image, Prepared& prepared) const;

 private:
  int height_;
  int width_;
  bool is_bgr_;
  bool takes_bytes_;
  // A byte has 256 values: what each becomes, by channel of the network.
  std::array<std::array<float, 256>, 3> normalised_{};
};

}  // namespace segdeploy
