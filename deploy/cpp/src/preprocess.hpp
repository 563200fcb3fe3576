// From a picture to the network's input, as the contract says.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "contract.hpp"
#include "resize.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// Throws Error for a view of nothing, or one whose rows overlap.
void check_view(const ImageView& image);

// Bytes from a view's first to its last.
std::size_t extent(const ImageView& image);
// Writes (height, width, 3) bytes without gaps in RGB order, of a view that was checked.
void gather(const ImageView& image, std::uint8_t* rgb);

// A byte has 256 values: what each becomes, by channel of the network.
using NormalisedBytes = std::array<std::array<float, 256>, 3>;
NormalisedBytes normalised_bytes(const Contract& contract);

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

  // Fills `bytes`, and `floats` where the network takes those, of its size or another one. Throws
  // Error for a bad view.
  void run(const ImageView& image, Prepared& prepared) const;
  void run(const ImageView& image, Prepared& prepared, int height, int width) const;
  // Which of the two the network takes.
  const void* input(const Prepared& prepared) const {
    if (takes_bytes_) return prepared.bytes.data();
    return prepared.floats.data();
  }

 private:
  int height_;
  int width_;
  bool is_bgr_;
  bool takes_bytes_;
  NormalisedBytes normalised_;
};

}  // namespace segdeploy
