// Image files, through libpng and libjpeg. A write is atomic, and replaces only a regular file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

struct RgbImage {
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> rgb;

  ImageView view() const { return {rgb.data(), height, width, 0, Format::rgb}; }
};

// Read a PNG or JPEG with 8 bits per channel as RGB, by the rules of docs/reference/images.md: rotated
// upright by its EXIF block, without alpha, gamma or color profile. Throws Error.
RgbImage read_image(const std::string& path);
// Write labels as a grayscale PNG whose values are class ids. Throws Error.
void write_labels(const std::string& path, const Labels& labels);
// Write an image as a PNG. Throws Error.
void write_image(const std::string& path, const RgbImage& image);

}  // namespace segdeploy
