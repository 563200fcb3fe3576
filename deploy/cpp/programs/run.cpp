// segdeploy-run IMAGE... --model M --out DIR: labels of each picture as DIR/NAME.png.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "pictures.hpp"
#include "segdeploy/segdeploy.hpp"

namespace {

constexpr const char* kUsage = "usage: segdeploy-run IMAGE... --model MODEL --out DIR [--threads N]";

struct Arguments {
  std::vector<std::string> images;
  std::string model;
  std::string out;
  segdeploy::Options options;
};

Arguments parse(int count, char** words) {
  Arguments found;
  for (int at = 1; at < count; ++at) {
    const std::string word = words[at];
    if (word.rfind("--", 0) != 0) {
      found.images.push_back(word);
      continue;
    }
    if (at + 1 == count) throw segdeploy::Error(word + " needs a value; " + kUsage);
    const std::string value = words[++at];
    if (word == "--model") {
      found.model = value;
    } else if (word == "--out") {
      found.out = value;
    } else if (word == "--threads") {
      found.options.threads = std::atoi(value.c_str());
      if (found.options.threads < 1) throw segdeploy::Error("--threads " + value + ": is 1 or more");
    } else {
      throw segdeploy::Error(word + ": no such option; " + kUsage);
    }
  }
  if (found.images.empty() || found.model.empty() || found.out.empty()) {
    throw segdeploy::Error(kUsage);
  }
  return found;
}

}  // namespace

int main(int count, char** words) {
  try {
    const Arguments asked = parse(count, words);
    const segdeploy::Model model(asked.model, asked.options);
    std::filesystem::create_directories(asked.out);
    segdeploy::Labels labels;
    for (const auto& path : asked.images) {
      model.predict(segdeploy::read_picture(path).view(), labels);
      const auto name = std::filesystem::path(path).stem().string() + ".png";
      segdeploy::write_labels((std::filesystem::path(asked.out) / name).string(), labels);
    }
    std::printf("%zu pictures by %s\n", asked.images.size(), model.runtime().c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
