// Compare scales, mirrored images, tiles, batches, futures, probabilities and overlays with
// Python's results. tests/test_cpp.py wrote inference_options.json and the files that it names.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <nlohmann/json.hpp>

#include "check.hpp"
#include "image_file.hpp"

namespace {

namespace fs = std::filesystem;
using namespace segdeploy;

std::vector<std::uint8_t> labels_of(const fs::path& file) {
  std::vector<std::uint8_t> labels;
  const RgbImage ids = read_image(file.string());
  for (std::size_t at = 0; at < ids.rgb.size(); at += 3) labels.push_back(ids.rgb[at]);
  return labels;
}

InferenceOptions options_of(const nlohmann::json& one) {
  InferenceOptions options;
  options.scales = one.at("scales").get<std::vector<double>>();
  options.flip = one.at("flip").get<bool>();
  options.fuse = one.at("fuse") == "max" ? Fuse::max : Fuse::mean;
  options.tile = one.at("tile").get<bool>();
  return options;
}

// The exp functions of Python and C++ round differently.
void check_probabilities(const Probabilities& found, const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::vector<float> wanted(found.data.size());
  stream.read(reinterpret_cast<char*>(wanted.data()),
              static_cast<std::streamsize>(wanted.size() * sizeof(float)));
  CHECK(stream.gcount() == static_cast<std::streamsize>(wanted.size() * sizeof(float)));
  for (std::size_t at = 0; at < wanted.size(); ++at) {
    CHECK(std::abs(wanted[at] - found.data[at]) < 1e-6F);
  }
}

void check_together(const Model& model, const std::vector<RgbImage>& images) {
  std::vector<ImageView> views;
  for (const auto& image : images) views.push_back(image.view());
  const auto together = model.predict(views);
  CHECK(together.size() == views.size());
  std::vector<std::future<Labels>> pending;
  for (const auto& view : views) pending.push_back(model.submit(view));
  for (std::size_t at = 0; at < views.size(); ++at) {
    const auto alone = model.predict(views[at]);
    CHECK(together[at].data == alone.data);
    CHECK(together[at].height == views[at].height);
    CHECK(pending[at].get().data == alone.data);
    std::vector<std::uint8_t> bytes(alone.data.size());
    model.predict(views[at], bytes.data());
    CHECK(bytes == alone.data);
  }
  check_refused("the image is 0x5", [&] { (void)model.submit({images[0].rgb.data(), 0, 5}); });
}

}  // namespace

int main() {
  const fs::path folder(test_files());
  if (!fs::exists(folder / "inference_options.json"))
    return 0;  // some sets of test files have no such cases
  std::ifstream file(folder / "inference_options.json");
  std::map<std::string, Model> models;
  int cases = 0;
  for (const auto& one : nlohmann::json::parse(file)) {
    const auto graph = one.at("graph").get<std::string>();
    if (models.count(graph) == 0) models.emplace(graph, Model((folder / graph).string()));
    const Model& model = models.at(graph);
    const RgbImage image = read_image((folder / "images" / one.at("image")).string());
    const auto wanted = one.at("wanted").get<std::string>();
    ++cases;
    if (one.contains("refused")) {
      check_refused(one.at("refused").get<std::string>(),
                    [&] { model.predict(image.view(), options_of(one)); });
    } else if (one.value("probabilities", false)) {
      check_probabilities(model.probabilities(image.view(), options_of(one)), folder / wanted);
    } else {
      CHECK(model.predict(image.view(), options_of(one)).data == labels_of(folder / wanted));
    }
  }
  CHECK(cases > 10);
  std::vector<RgbImage> images;
  for (const auto& entry : fs::directory_iterator(folder / "images")) {
    images.push_back(read_image(entry.path().string()));
  }
  for (const auto& [graph, model] : models) check_together(model, images);
  // Compare with Python's overlay of the first image by its own labels.
  const RgbImage first = read_image((folder / "images" / "0.png").string());
  const Model& model = models.at("dynamic.onnx");
  const RgbImage wanted = read_image((folder / "overlay.png").string());
  std::vector<std::uint8_t> rgb(first.rgb.size());
  overlay(first.view(), model.predict(first.view()), model.palette(), rgb.data());
  CHECK(rgb == wanted.rgb);
  check_refused("the labels are 0x0", [&] { overlay(first.view(), {}, {}, rgb.data()); });
  return 0;
}
