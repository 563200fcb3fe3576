// Run the fuzz target on damaged copies of valid files. Every run makes the same copies:
//     fuzz_target [ROUNDS]
// The seeds are the files in SEGDEPLOY_TEST_FILES/seeds. The first character of a file's name is
// the first byte of the target's input (0, 1 or 2).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;

std::vector<Bytes> read_seeds() {
  std::vector<Bytes> seeds = {{0, '{', '}'}, {1, '{', '}'}, {2, 2, 0, 0, 0, 0, 0, 0, 0, '{', '}'}};
  const char* folder = std::getenv("SEGDEPLOY_TEST_FILES");
  if (folder == nullptr || !fs::is_directory(fs::path(folder) / "seeds")) return seeds;
  for (const auto& entry : fs::directory_iterator(fs::path(folder) / "seeds")) {
    std::ifstream file(entry.path(), std::ios::binary);
    Bytes seed = {static_cast<std::uint8_t>(entry.path().filename().string()[0] - '0')};
    seed.insert(seed.end(), std::istreambuf_iterator<char>(file), {});
    seeds.push_back(seed);
  }
  return seeds;
}

// Change, remove, repeat or cut off bytes, or replace digits, which often keeps the JSON readable.
void damage(Bytes& bytes, std::mt19937& random) {
  const auto place = [&] { return bytes.size() < 2 ? 0 : 1 + random() % (bytes.size() - 1); };
  for (unsigned change = 1 + random() % 4; change > 0 && bytes.size() > 2; --change) {
    const auto at = static_cast<std::ptrdiff_t>(place());
    const auto length = static_cast<std::ptrdiff_t>(random() % 16);
    const auto end = std::min(at + length, static_cast<std::ptrdiff_t>(bytes.size()));
    switch (random() % 5) {
      case 0:
        bytes[static_cast<std::size_t>(at)] = static_cast<std::uint8_t>(random());
        break;
      case 1:
        bytes.erase(bytes.begin() + at, bytes.begin() + end);
        break;
      case 2: {
        const Bytes part(bytes.begin() + at, bytes.begin() + end);
        bytes.insert(bytes.begin() + at, part.begin(), part.end());
        break;
      }
      case 3:
        if (random() % 8 == 0) bytes.resize(static_cast<std::size_t>(at));
        break;
      default:
        for (std::size_t look = place(); look < bytes.size(); ++look) {
          if (bytes[look] < '0' || bytes[look] > '9') continue;
          bytes[look] = static_cast<std::uint8_t>("0123456789-.e\"[{"[random() % 16]);
          break;
        }
    }
  }
}

}  // namespace

int main(int count, char** words) {
  const int rounds = count > 1 ? std::atoi(words[1]) : 20000;
  const auto seeds = read_seeds();
  std::mt19937 random(0);
  for (const auto& seed : seeds) LLVMFuzzerTestOneInput(seed.data(), seed.size());
  for (int round = 0; round < rounds; ++round) {
    Bytes bytes = seeds[random() % seeds.size()];
    damage(bytes, random);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%d damaged files of %zu\n", rounds, seeds.size());
  return 0;
}
