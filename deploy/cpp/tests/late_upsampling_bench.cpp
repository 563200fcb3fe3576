// Time the labels of low-resolution logits with and without upsampled logits, in turns:
//     late_upsampling_bench [SCORES CLASSES HEIGHT WIDTH TO_HEIGHT TO_WIDTH]
// SCORES is a file of raw floats from a network. Without it, smooth random logits are used.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <vector>

#include "labels.hpp"

namespace {

double milliseconds(const std::vector<double>& times) {
  auto sorted = times;
  std::sort(sorted.begin(), sorted.end());
  return 1e3 * sorted[sorted.size() / 2];
}

template <typename Call>
double timed(Call call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Return waves that are a few cells long. They give regions of one class, with boundaries between
// the regions.
std::vector<float> smooth(int classes, int height, int width) {
  std::mt19937 random(0);
  std::uniform_real_distribution<float> phase(0.0F, 6.28F);
  std::uniform_real_distribution<float> speed(0.1F, 0.35F);
  std::vector<float> maps;
  for (int id = 0; id < classes; ++id) {
    const float a = phase(random), b = speed(random), c = speed(random);
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        maps.push_back(std::sin(a + b * static_cast<float>(y)) +
                       std::cos(a - c * static_cast<float>(x)));
      }
    }
  }
  return maps;
}

int compare(const std::vector<float>& maps, int classes, int height, int width, int to_height,
            int to_width) {
  const segdeploy::Scores scores{maps.data(), classes, height, width};
  segdeploy::Labeller labeller;
  std::vector<std::uint8_t> plain(static_cast<std::size_t>(to_height * to_width)), late(plain);
  std::vector<double> plain_times, late_times;
  for (int round = 0; round < 30; ++round) {
    plain_times.push_back(
        timed([&] { labeller.best_classes(scores, to_height, to_width, plain.data()); }));
    late_times.push_back(timed([&] {
      labeller.best_classes_of_low_resolution(scores, to_height, to_width, false, late.data());
    }));
  }
  std::size_t differ = 0;
  for (std::size_t at = 0; at < plain.size(); ++at) differ += plain[at] != late[at];
  const double before = milliseconds(plain_times), after = milliseconds(late_times);
  std::printf("%dx%dx%d to %dx%d: %.3f ms plain, %.3f ms late: %.1fx; %zu of %zu labels differ\n",
              classes, height, width, to_height, to_width, before, after, before / after, differ,
              plain.size());
  return differ == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
  if (count == 7) {
    int sides[5];
    for (int at = 0; at < 5; ++at) sides[at] = std::atoi(words[at + 2]);
    std::vector<float> maps(static_cast<std::size_t>(sides[0] * sides[1] * sides[2]));
    std::ifstream file(words[1], std::ios::binary);
    file.read(reinterpret_cast<char*>(maps.data()),
              static_cast<std::streamsize>(maps.size() * sizeof(float)));
    if (!file) return 2;
    return compare(maps, sides[0], sides[1], sides[2], sides[3], sides[4]);
  }
  return compare(smooth(11, 23, 30), 11, 23, 30, 360, 480) +
         compare(smooth(21, 65, 65), 21, 65, 65, 513, 513);
}
