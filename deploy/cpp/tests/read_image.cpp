// read_image FILE...: print each image's height and width in a line, then its bytes; or an error.
#include <cstdio>
#include <exception>

#include "image_file.hpp"

int main(int count, char** words) {
  for (int at = 1; at < count; ++at) {
    try {
      const segdeploy::RgbImage image = segdeploy::read_image(words[at]);
      std::printf("%d %d\n", image.height, image.width);
      std::fwrite(image.rgb.data(), 1, image.rgb.size(), stdout);
    } catch (const std::exception& error) {
      std::printf("error: %s\n", error.what());
    }
  }
  return 0;
}
