#include <cstddef>
#include <functional>
#include <vector>

#include "preprocess.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {
namespace {

// Copy the image as RGB. If source and target overlap, the image's bytes are saved first.
void gather_apart(const ImageView& image, std::uint8_t* rgb) {
  const std::size_t bytes = extent(image);
  const std::less<const std::uint8_t*> is_before;
  const bool is_apart = !is_before(rgb, image.data + bytes) ||
                        !is_before(image.data, rgb + area(image.height, image.width) * 3);
  if (is_apart) {
    gather(image, rgb);
    return;
  }
  const std::vector<std::uint8_t> aside(image.data, image.data + bytes);
  ImageView copied = image;
  copied.data = aside.data();
  gather(copied, rgb);
}

}  // namespace

void overlay(const ImageView& image, const Labels& labels,
             const std::vector<std::array<std::uint8_t, 3>>& palette, std::uint8_t* rgb,
             float opacity) {
  check_view(image);
  if (labels.height != image.height || labels.width != image.width ||
      labels.data.size() != area(image.height, image.width)) {
    throw Error("overlay: the labels are " + std::to_string(labels.height) + "x" +
                std::to_string(labels.width) + ", and the image is " +
                std::to_string(image.height) + "x" + std::to_string(image.width));
  }
  if (rgb == nullptr) throw Error("overlay: there is no memory for the image");
  if (!(opacity >= 0 && opacity <= 1)) throw Error("overlay: the opacity must be 0 to 1");
  gather_apart(image, rgb);
  for (const std::uint8_t id : labels.data) {
    if (id < palette.size()) {
      for (std::size_t channel = 0; channel < 3; ++channel) {
        // As in numpy: round each product and the sum to float32, then truncate.
        const float below = static_cast<float>(rgb[channel]) * (1.0F - opacity);
        const float above = static_cast<float>(palette[id][channel]) * opacity;
        rgb[channel] = static_cast<std::uint8_t>(below + above);
      }
    }
    rgb += 3;
  }
}

}  // namespace segdeploy
