// segdeploy-run IMAGE... --model M --out DIR: write the labels of each image to DIR/NAME.png.
// --overlays DIR writes each image with the class colors blended over it.
// segdeploy-run --self-test GOLDEN --model M: compare this host with the reference, by golden
// vectors.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>
#include <set>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "image_file.hpp"
#include "segdeploy/segdeploy.hpp"

namespace {

constexpr const char* kUsage =
    "usage: segdeploy-run IMAGE... --model MODEL [--out DIR] [--overlays DIR] [--threads N] "
    "[--contexts N] [--provider cpu|cuda|tensorrt] [--preprocess-on cpu|gpu], with at least one of "
    "--out and --overlays; or: segdeploy-run --self-test GOLDEN --model MODEL";

// Print the differences of each image, stage by stage. Returns 1 if a difference is too large.
int self_test(const segdeploy::Model& model, const std::string& golden) {
  const auto found = model.self_test(golden);
  for (std::size_t at = 0; at < found.images.size(); ++at) {
    const auto& image = found.images[at];
    std::printf("image %zu: input %.2g, output %.2g of its range, labels %.3f %%\n", at,
                static_cast<double>(image.input), static_cast<double>(image.output),
                100.0 * static_cast<double>(image.agreement));
  }
  if (!found.failure_message.empty()) {
    std::fprintf(stderr, "error: %s\n", found.failure_message.c_str());
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
                                     {"--model", "--out", "--self-test", "--overlays", "--threads",
                                      "--provider", "--contexts", "--preprocess-on"},
                                     {}, kUsage);
    const std::string out = asked.text("--out", ""), golden = asked.text("--self-test", "");
    const std::string overlays = asked.text("--overlays", "");
    const bool has_images = !asked.others().empty() && !(out.empty() && overlays.empty());
    if (asked.model().empty() || has_images == !golden.empty()) throw segdeploy::Error(kUsage);
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
      segdeploy::RgbImage image = segdeploy::read_image(path);
      model.predict(image.view(), labels);
      const auto name = fs::path(path).stem().string() + ".png";
      if (!out.empty()) segdeploy::write_labels((fs::path(out) / name).string(), labels);
      if (overlays.empty()) continue;
      segdeploy::overlay(image.view(), labels, model.palette(), image.rgb.data());
      segdeploy::write_image((fs::path(overlays) / name).string(), image);
    }
    std::printf("%zu images by %s\n", asked.others().size(), model.runtime().c_str());
    return 0;
  } catch (const std::bad_alloc&) {
    std::fputs("error: out of memory; give smaller images, or fewer --threads\n", stderr);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", segdeploy::printable(error.what()).c_str());
    return 2;
  }
}
