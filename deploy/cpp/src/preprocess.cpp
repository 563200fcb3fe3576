#include "preprocess.hpp"

#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

namespace segdeploy {
namespace {

constexpr int kLongestSide = 1 << 16;

int channels_of(Format format) {
  switch (format) {
    case Format::rgb:
    case Format::bgr:
      return 3;
    case Format::rgba:
      return 4;
    case Format::gray:
      return 1;
  }
  throw Error("predict: the image has a format that is none of rgb, bgr, rgba and gray");
}

// (height, width, 3) bytes without gaps in RGB order, of a view that is checked first.
void gather(const ImageView& image, std::vector<std::uint8_t>& rgb) {
  const int channels = channels_of(image.format);
  if (image.data == nullptr || image.height < 1 || image.width < 1 ||
      image.height > kLongestSide || image.width > kLongestSide) {
    throw Error("predict: the image is " + std::to_string(image.height) + "x" +
                std::to_string(image.width) + (image.data ? "" : " at no address") +
                "; give a view of 1x1 to 65536x65536 pixels");
  }
  const auto height = static_cast<std::size_t>(image.height);
  const auto width = static_cast<std::size_t>(image.width);
  const std::size_t packed = width * static_cast<std::size_t>(channels);
  const std::size_t stride = image.stride == 0 ? packed : image.stride;
  if (stride < packed) {
    throw Error("predict: the image's stride is " + std::to_string(stride) + " bytes, and a row has " +
                std::to_string(packed));
  }
  rgb.resize(height * width * 3);
  std::uint8_t* to = rgb.data();
  for (std::size_t row = 0; row < height; ++row) {
    const std::uint8_t* from = image.data + row * stride;
    if (image.format == Format::rgb) {
      std::memcpy(to, from, packed);
      to += packed;
      continue;
    }
    for (std::size_t column = 0; column < width; ++column, from += channels, to += 3) {
      const bool is_gray = image.format == Format::gray;
      to[0] = from[0];
      to[1] = from[is_gray ? 0 : 1];
      to[2] = from[is_gray ? 0 : 2];
      if (image.format == Format::bgr) std::swap(to[0], to[2]);
    }
  }
}

}  // namespace

Preprocessor::Preprocessor(const Contract& contract)
    : height_(contract.height),
      width_(contract.width),
      is_bgr_(contract.is_bgr),
      takes_bytes_(contract.takes_bytes) {
  for (std::size_t channel = 0; channel < 3; ++channel) {
    // The order of Python's operations, each rounded to float32.
    const float divisor = 255.0F * contract.std[channel];
    const float scale = 1.0F / divisor;
    const float shift = contract.mean[channel] / contract.std[channel];
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const float product = static_cast<float>(byte) * scale;
      normalised_[channel][byte] = product - shift;
    }
  }
}

void Preprocessor::run(const ImageView& image, Prepared& prepared) const {
  gather(image, prepared.rgb);
  auto& bytes = prepared.bytes;
  prepared.resizer.run(prepared.rgb, image.height, image.width, bytes, height_, width_);
  if (is_bgr_) {
    for (std::size_t at = 0; at + 2 < bytes.size(); at += 3) std::swap(bytes[at], bytes[at + 2]);
  }
  if (takes_bytes_) return;
  const std::size_t pixels = bytes.size() / 3;
  prepared.floats.resize(pixels * 3);
  float* planes[] = {prepared.floats.data(), prepared.floats.data() + pixels,
                     prepared.floats.data() + 2 * pixels};
  const std::uint8_t* byte = bytes.data();
  for (std::size_t at = 0; at < pixels; ++at, byte += 3) {
    planes[0][at] = normalised_[0][byte[0]];
    planes[1][at] = normalised_[1][byte[1]];
    planes[2][at] = normalised_[2][byte[2]];
  }
}

}  // namespace segdeploy
