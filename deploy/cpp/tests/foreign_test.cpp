// Files, options and memory from outside are refused or handled completely, and never cause a
// crash.
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "check.hpp"
#include "image_file.hpp"
#include "segdeploy/segdeploy.hpp"
#include "segdeploy/segdeploy_c.h"

namespace {

namespace fs = std::filesystem;
using namespace segdeploy;

// Graphs whose outputs do not match their contract are refused with Python's message, already when
// the model is opened if the mismatch is known then.
void check_graphs(const fs::path& folder) {
  std::ifstream file(folder / "foreign" / "cases.json");
  const RgbImage image = read_image((folder / "images" / "1_own.png").string());
  int cases = 0;
  for (const auto& one : nlohmann::json::parse(file)) {
    const std::string path = (folder / "foreign" / one.at("graph").get<std::string>()).string();
    const auto words = one.at("message").get<std::string>();
    if (one.at("at_open").get<bool>()) {
      check_refused(words, [&] { Model{path}; });
    } else {
      const Model model(path);
      check_refused(words, [&] { model.predict(image.view()); });
      InferenceOptions tiled;
      tiled.tile = true;
      check_refused(words, [&] { model.predict(image.view(), tiled); });
      check_refused(words, [&] { model.submit(image.view()).get(); });
    }
    ++cases;
  }
  CHECK(cases >= 6);
}

void check_options(const std::string& path) {
  Options options;
  for (const int threads : {-5, -1, 100000}) {
    options.threads = threads;
    check_refused("threads " + std::to_string(threads) + ": must be 0",
                  [&] { Model{path, options}; });
  }
  options = {};
  options.contexts = 0;
  check_refused("contexts 0: must be 1 to", [&] { Model{path, options}; });
  options = {};
  options.queue = 0;
  check_refused("queue 0: must be 1 to", [&] { Model{path, options}; });
  options = {};
  options.provider = "rocm";
  check_refused("no such provider", [&] { Model{path, options}; });
  options = {};
  options.onnxruntime = "/nowhere/libonnxruntime.so.1";
  check_refused("a process has one ONNX Runtime", [&] { Model{path, options}; });
  check_refused("no such file", [&] { Model{path + ".none.onnx"}; });
  check_refused("is a folder, not a file", [&] { Model{fs::path(path).parent_path().string()}; });
}

// An image that is freed before its labels are requested, discarded futures, an exception while a
// task is pending, a full queue, and a model that is destroyed before its futures are read.
void check_submit(const std::string& path, const RgbImage& image) {
  Options options;
  options.contexts = 2;
  options.queue = 1;
  options.threads = 1;
  std::vector<std::future<Labels>> kept;
  Labels wanted;
  {
    const Model model(path, options);
    wanted = model.predict(image.view());
    for (int round = 0; round < 6; ++round) {
      Image owned{image.rgb, image.height, image.width, 0, Format::rgb};
      kept.push_back(model.submit(std::move(owned)));
      (void)model.submit(Image{image.rgb, image.height, image.width, 0, Format::rgb});
    }
    check_refused("the image has 10 bytes, and", [&] {
      (void)model.submit(Image{std::vector<std::uint8_t>(10), 4, 4, 0, Format::rgb});
    });
    check_refused("at no address", [&] { (void)model.submit(Image{}); });
  }
  for (auto& future : kept) CHECK(future.get().data == wanted.data);
  try {
    const Model model(path, options);
    (void)model.submit(Image{image.rgb, image.height, image.width, 0, Format::rgb});
    throw Error("an exception beside what was submitted");
  } catch (const Error&) {
  }
}

// An overlay onto the image itself equals an overlay into separate memory, for every format.
void check_overlay() {
  const std::vector<std::array<std::uint8_t, 3>> palette = {{200, 10, 30}, {0, 90, 250}};
  const int height = 5, width = 7;
  Labels labels{height, width, std::vector<std::uint8_t>(height * width)};
  for (std::size_t at = 0; at < labels.data.size(); ++at) labels.data[at] = at % 3;
  for (const Format format : {Format::rgb, Format::bgr, Format::rgba, Format::gray}) {
    const std::size_t channels = format == Format::gray ? 1 : format == Format::rgba ? 4 : 3;
    for (const std::size_t gap : {0, 5}) {
      const std::size_t stride = width * channels + gap;
      std::vector<std::uint8_t> memory(stride * height + height * width * 3);
      for (std::size_t at = 0; at < memory.size(); ++at) {
        memory[at] = static_cast<std::uint8_t>(at * 37);
      }
      std::vector<std::uint8_t> apart(height * width * 3);
      const ImageView view{memory.data(), height, width, stride, format};
      overlay(view, labels, palette, apart.data());
      std::vector<std::uint8_t> shifted = memory;
      overlay(view, labels, palette, memory.data());
      CHECK(std::memcmp(memory.data(), apart.data(), apart.size()) == 0);
      const ImageView other{shifted.data(), height, width, stride, format};
      overlay(other, labels, palette, shifted.data() + 3);
      CHECK(std::memcmp(shifted.data() + 3, apart.data(), apart.size()) == 0);
    }
  }
  const std::vector<std::uint8_t> rgb(height * width * 3);
  check_refused("there is no memory for the image",
                [&] { overlay({rgb.data(), height, width}, labels, palette, nullptr); });
}

// The C interface keeps a long message, and reports a wrong option.
void check_c() {
  const std::string path = "/nowhere/" + std::string(5000, 'x') + ".onnx";
  CHECK(segdeploy_open(path.c_str(), nullptr) == nullptr);
  CHECK(std::strlen(segdeploy_error()) > 1000);
  segdeploy_options options{};
  options.threads = -5;
  CHECK(segdeploy_open("none.onnx", &options) == nullptr);
  CHECK(std::string(segdeploy_error()).find("threads -5") != std::string::npos);
}

}  // namespace

int main() {
  const fs::path folder(test_files());
  const std::string path = (folder / "logits.onnx").string();
  check_submit(path, read_image((folder / "images" / "0_odd.png").string()));
  check_options(path);
  check_graphs(folder);
  check_overlay();
  check_c();
  return 0;
}
