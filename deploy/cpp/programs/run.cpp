// segdeploy-run IMAGE... --model M --out DIR: labels of each picture as DIR/NAME.png.
// segdeploy-run --selftest GOLDEN --model M: does this host give what the reference gave?
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "pictures.hpp"
#include "segdeploy/segdeploy.hpp"

namespace {

constexpr const char* kUsage =
    "usage: segdeploy-run IMAGE... --model MODEL --out DIR [--threads N], or "
    "segdeploy-run --selftest GOLDEN --model MODEL";

struct Arguments {
  std::vector<std::string> images;
  std::string model;
  std::string out;
  std::string golden;
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
    } else if (word == "--selftest") {
      found.golden = value;
    } else if (word == "--threads") {
      found.options.threads = std::atoi(value.c_str());
      if (found.options.threads < 1) throw segdeploy::Error("--threads " + value + ": is 1 or more");
    } else {
      throw segdeploy::Error(word + ": no such option; " + kUsage);
    }
  }
  const bool has_pictures = !found.images.empty() && !found.out.empty();
  if (found.model.empty() || has_pictures == !found.golden.empty()) {
    throw segdeploy::Error(kUsage);
  }
  return found;
}

// Prints each stage's largest difference; 1 if one is too large.
int self_test(const segdeploy::Model& model, const std::string& golden) {
  const auto found = model.self_test(golden);
  for (std::size_t at = 0; at < found.pictures.size(); ++at) {
    const auto& picture = found.pictures[at];
    std::printf("picture %zu: input %.2g, output %.2g of its range, labels %.3f %%\n", at,
                static_cast<double>(picture.input), static_cast<double>(picture.output),
                100.0 * static_cast<double>(picture.agreement));
  }
  if (!found.complaint.empty()) {
    std::fprintf(stderr, "error: %s\n", found.complaint.c_str());
    return 1;
  }
  std::printf("this host gives what the reference gave, by %s\n", model.runtime().c_str());
  return 0;
}

}  // namespace

int main(int count, char** words) {
  try {
    const Arguments asked = parse(count, words);
    const segdeploy::Model model(asked.model, asked.options);
    if (!asked.golden.empty()) return self_test(model, asked.golden);
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
