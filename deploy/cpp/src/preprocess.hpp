// Preprocessing: from an image to the network's input, as the contract states.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "contract.hpp"
#include "resize.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// Throw Error for an invalid view: without pixels, too large, of an unknown format, or with
// overlapping rows.
void check_view(const ImageView& image);

// Return the number of bytes from a view's first byte to its last byte.
std::size_t extent(const ImageView& image);
// Copy a checked view to contiguous (height, width, 3) bytes in RGB order.
void gather(const ImageView& image, std::uint8_t* rgb);

// The normalized value of each of the 256 byte values, per channel of the network.
using NormalizedBytes = std::array<std::array<float, 256>, 3>;
NormalizedBytes normalized_bytes(const Contract& contract);

// The buffers of one image's preprocessing. They are reused for the next image.
struct Prepared {
  std::vector<std::uint8_t> rgb;
  std::vector<std::uint8_t> bytes;  // (H, W, 3), for a graph that normalizes
  std::vector<float> floats;        // (3, H, W)
  Resizer resizer;
};

class Preprocessor {
 public:
  explicit Preprocessor(const Contract& contract);

  // Fill `bytes`, and `floats` if the network takes floats, at the network's size or at a given
  // size. Throws Error for an invalid view.
  void run(const ImageView& image, Prepared& prepared) const;
  void run(const ImageView& image, Prepared& prepared, int height, int width) const;
  // Return the buffer that the network takes, `bytes` or `floats`.
  const void* input(const Prepared& prepared) const {
    if (takes_bytes_) return prepared.bytes.data();
    return prepared.floats.data();
  }

 private:
  int height_;
  int width_;
  bool is_bgr_;
  bool takes_bytes_;
  NormalizedBytes normalized_;
};

}  // namespace segdeploy
