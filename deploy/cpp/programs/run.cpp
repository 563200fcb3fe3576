// segdeploy-run IMAGE... --model M --out DIR: labels of each picture as DIR/NAME.png; --overlays DIR:
// the classes' colours over it.
// segdeploy-run --selftest GOLDEN --model M: does this host give what the reference gave?
#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>
#include <set>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "pictures.hpp"
#include "segdeploy/segdeploy.hpp"

namespace {

constexpr const char* kUsage =
    "usage: segdeploy-run IMAGE... --model MODEL [--out DIR] [--overlays DIR] [--threads N] "
    "[--provider cpu|cuda|tensorrt], or segdeploy-run --selftest GOLDEN --model MODEL";

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
  namespace fs = std::filesystem;
  try {
    const segdeploy::Arguments asked(count, words,
                                     {"--model", "--out", "--selftest", "--overlays", "--threads",
                                      "--provider", "--contexts", "--pictures-on"},
                                     {}, kUsage);
    const std::string out = asked.text("--out", ""), golden = asked.text("--selftest", "");
    const std::string overlays = asked.text("--overlays", "");
    const bool has_pictures = !asked.others().empty() && !(out.empty() && overlays.empty());
    if (asked.model().empty() || has_pictures == !golden.empty()) throw segdeploy::Error(kUsage);
    std::set<std::string> names;
    for (const auto& path : asked.others()) {
      if (!names.insert(fs::path(path).stem().string()).second) {
        throw segdeploy::Error(path +
                               ": another image has the same name, and their labels would be "
                               "one file; give them apart");
      }
    }
    const segdeploy::Model model(asked.model(), asked.options());
    if (!golden.empty()) return self_test(model, golden);
    for (const auto& folder : {out, overlays}) {
      if (!folder.empty()) fs::create_directories(folder);
    }
    segdeploy::Labels labels;
    for (const auto& path : asked.others()) {
      segdeploy::Picture picture = segdeploy::read_picture(path);
      model.predict(picture.view(), labels);
      const auto name = fs::path(path).stem().string() + ".png";
      if (!out.empty()) segdeploy::write_labels((fs::path(out) / name).string(), labels);
      if (overlays.empty()) continue;
      segdeploy::overlay(picture.view(), labels, model.palette(), picture.rgb.data());
      segdeploy::write_picture((fs::path(overlays) / name).string(), picture);
    }
    std::printf("%zu pictures by %s\n", asked.others().size(), model.runtime().c_str());
    return 0;
  } catch (const std::bad_alloc&) {
    std::fputs("error: out of memory; give smaller images, or fewer --threads\n", stderr);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", segdeploy::printable(error.what()).c_str());
    return 2;
  }
}
