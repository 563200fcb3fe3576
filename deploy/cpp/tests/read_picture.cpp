// read_picture FILE...: of each picture a line with its height and width, and its bytes; or the error.
#include <cstdio>
#include <exception>

#include "pictures.hpp"

int main(int count, char** words) {
  for (int at = 1; at < count; ++at) {
    try {
      const segdeploy::Picture picture = segdeploy::read_picture(words[at]);
      std::printf("%d %d\n", picture.height, picture.width);
      std::fwrite(picture.rgb.data(), 1, picture.rgb.size(), stdout);
    } catch (const std::exception& error) {
      std::printf("error: %s\n", error.what());
    }
  }
  return 0;
}
