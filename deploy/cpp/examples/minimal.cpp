// minimal MODEL HEIGHT WIDTH < frame.rgb: print the percentage of each class in an RGB frame.
#include <segdeploy/segdeploy.hpp>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

int main(int count, char** words) try {
  if (count != 4) throw segdeploy::Error("usage: minimal MODEL HEIGHT WIDTH < frame.rgb");
  const int height = std::atoi(words[2]), width = std::atoi(words[3]);
  if (height < 1 || width < 1) throw segdeploy::Error("HEIGHT and WIDTH are positive");
  std::vector<unsigned char> pixels(static_cast<std::size_t>(height) * width * 3);
  if (std::fread(pixels.data(), 1, pixels.size(), stdin) != pixels.size()) {
    throw segdeploy::Error("stdin: holds no such frame");
  }

  const segdeploy::Model model(words[1]);
  const segdeploy::Labels labels = model.predict({pixels.data(), height, width});

  std::vector<int> counts(256);
  for (const auto id : labels.data) ++counts[id];
  for (std::size_t id = 0; id < model.classes().size(); ++id) {
    std::printf("%s %.2f %%\n", model.classes()[id].c_str(),
                100.0 * counts[id] / labels.data.size());
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
