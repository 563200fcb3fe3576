#include <cstddef>
#include <vector>

#include "preprocess.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

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
  if (!(opacity >= 0 && opacity <= 1)) throw Error("overlay: the opacity must be 0 to 1");
  gather(image, rgb);
  for (const std::uint8_t id : labels.data) {
    if (id < palette.size()) {
      for (std::size_t channel = 0; channel < 3; ++channel) {
        // numpy's order: each product and the sum rounded to float32, then cut off.
        const float below = static_cast<float>(rgb[channel]) * (1.0F - opacity);
        const float above = static_cast<float>(palette[id][channel]) * opacity;
        rgb[channel] = static_cast<std::uint8_t>(below + above);
      }
    }
    rgb += 3;
  }
}

}  // namespace segdeploy
