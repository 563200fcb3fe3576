// Pictures in files, through libpng and libjpeg. What is written replaces a regular file alone, whole.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

struct Picture {
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> rgb;

  ImageView view() const { return {rgb.data(), height, width, 0, Format::rgb}; }
};

// Reads a PNG or JPEG of 8 bits a channel as RGB, by the rule of docs/pictures.md: turned upright by
// its EXIF block, without alpha, gamma or color profile. Throws Error.
Picture read_picture(const std::string& path);
// Writes labels as a gray PNG whose values are class ids. Throws Error.
void write_labels(const std::string& path, const Labels& labels);
// Writes a picture as PNG. Throws Error.
void write_picture(const std::string& path, const Picture& picture);

}  // namespace segdeploy
