#include "preprocess.hpp"

#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

namespace segdeploy {
namespace {

constexpr int kMaxSide = (1 << 16) - 1;  // the limit of a CUDA grid in y

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

}  // namespace

void check_view(const ImageView& image) {
  const auto channels = static_cast<std::size_t>(channels_of(image.format));
  if (image.data == nullptr || image.height < 1 || image.width < 1 || image.height > kMaxSide ||
      image.width > kMaxSide) {
    throw Error("predict: the image is " + std::to_string(image.height) + "x" +
                std::to_string(image.width) + (image.data ? "" : " at no address") +
                "; give a view of 1x1 to 65535x65535 pixels");
  }
  const std::size_t packed = static_cast<std::size_t>(image.width) * channels;
  if (image.stride != 0 && image.stride < packed) {
    throw Error("predict: the image's stride is " + std::to_string(image.stride) +
                " bytes, and a row has " + std::to_string(packed));
  }
}

std::size_t extent(const ImageView& image) {
  const std::size_t packed =
      static_cast<std::size_t>(image.width) * static_cast<std::size_t>(channels_of(image.format));
  const std::size_t stride = image.stride == 0 ? packed : image.stride;
  return stride * static_cast<std::size_t>(image.height - 1) + packed;
}

void gather(const ImageView& image, std::uint8_t* rgb) {
  const int channels = channels_of(image.format);
  const auto width = static_cast<std::size_t>(image.width);
  const std::size_t packed = width * static_cast<std::size_t>(channels);
  const std::size_t stride = image.stride == 0 ? packed : image.stride;
  for (int row = 0; row < image.height; ++row) {
    const std::uint8_t* from = image.data + static_cast<std::size_t>(row) * stride;
    if (image.format == Format::rgb) {
      std::memcpy(rgb, from, packed);
      rgb += packed;
      continue;
    }
    const bool is_gray = image.format == Format::gray;
    const int first = image.format == Format::bgr ? 2 : 0;
    const int second = is_gray ? 0 : 1;
    const int third = is_gray ? 0 : 2 - first;
    for (std::size_t column = 0; column < width; ++column, from += channels, rgb += 3) {
      rgb[0] = from[first];
      rgb[1] = from[second];
      rgb[2] = from[third];
    }
  }
}

NormalizedBytes normalized_bytes(const Contract& contract) {
  NormalizedBytes values{};
  for (std::size_t channel = 0; channel < 3; ++channel) {
    // The operations have Python's order, and each is rounded to float32.
    const float divisor = 255.0F * contract.std[channel];
    const float scale = 1.0F / divisor;
    const float shift = contract.mean[channel] / contract.std[channel];
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const float product = static_cast<float>(byte) * scale;
      values[channel][byte] = product - shift;
    }
  }
  return values;
}

Preprocessor::Preprocessor(const Contract& contract)
    : height_(contract.height),
      width_(contract.width),
      is_bgr_(contract.is_bgr),
      takes_bytes_(contract.takes_bytes),
      normalized_(normalized_bytes(contract)) {}

void Preprocessor::run(const ImageView& image, Prepared& prepared) const {
  run(image, prepared, height_, width_);
}

void Preprocessor::run(const ImageView& image, Prepared& prepared, int height, int width) const {
  check_view(image);
  auto& bytes = prepared.bytes;
  prepared.rgb.resize(area(image.height, image.width) * 3);
  gather(image, prepared.rgb.data());
  prepared.resizer.run(prepared.rgb, image.height, image.width, bytes, height, width);
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
    planes[0][at] = normalized_[0][byte[0]];
    planes[1][at] = normalized_[1][byte[1]];
    planes[2][at] = normalized_[2][byte[2]];
  }
}

}  // namespace segdeploy
