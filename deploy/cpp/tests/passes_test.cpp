// Scales, mirrored pictures, tiles, batches, tickets, probabilities and overlays against Python's:
// tests/test_cpp.py wrote passes.json and what it names.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <nlohmann/json.hpp>

#include "check.hpp"
#include "pictures.hpp"

namespace {

namespace fs = std::filesystem;
using namespace segdeploy;

std::vector<std::uint8_t> labels_of(const fs::path& file) {
  std::vector<std::uint8_t> labels;
  const Picture ids = read_picture(file.string());
  for (std::size_t at = 0; at < ids.rgb.size(); at += 3) labels.push_back(ids.rgb[at]);
  return labels;
}

Passes passes_of(const nlohmann::json& one) {
  Passes passes;
  passes.scales = one.at("scales").get<std::vector<double>>();
  passes.flip = one.at("flip").get<bool>();
  passes.fuse = one.at("fuse") == "max" ? Fuse::max : Fuse::mean;
  passes.tile = one.at("tile").get<bool>();
  return passes;
}

// Python's exp and ours round apart.
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

void check_together(const Model& model, const std::vector<Picture>& pictures) {
  std::vector<ImageView> views;
  for (const auto& picture : pictures) views.push_back(picture.view());
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
  check_refused("the image is 0x5", [&] { (void)model.submit({pictures[0].rgb.data(), 0, 5}); });
}

}  // namespace

int main() {
  const fs::path folder(test_files());
  if (!fs::exists(folder / "passes.json")) return 0;  // a few files for the sanitizers hold none
  std::ifstream file(folder / "passes.json");
  std::map<std::string, Model> models;
  int cases = 0;
  for (const auto& one : nlohmann::json::parse(file)) {
    const auto graph = one.at("graph").get<std::string>();
    if (models.count(graph) == 0) models.emplace(graph, Model((folder / graph).string()));
    const Model& model = models.at(graph);
    const Picture picture = read_picture((folder / "pictures" / one.at("picture")).string());
    const auto wanted = one.at("wanted").get<std::string>();
    ++cases;
    if (one.contains("refused")) {
      check_refused(one.at("refused").get<std::string>(),
                    [&] { model.predict(picture.view(), passes_of(one)); });
    } else if (one.value("probabilities", false)) {
      check_probabilities(model.probabilities(picture.view(), passes_of(one)), folder / wanted);
    } else {
      CHECK(model.predict(picture.view(), passes_of(one)).data == labels_of(folder / wanted));
    }
  }
  CHECK(cases > 10);
  std::vector<Picture> pictures;
  for (const auto& entry : fs::directory_iterator(folder / "pictures")) {
    pictures.push_back(read_picture(entry.path().string()));
  }
  for (const auto& [graph, model] : models) check_together(model, pictures);
  // Python's overlay of the first picture by its own labels.
  const Picture first = read_picture((folder / "pictures" / "0.png").string());
  const Model& model = models.at("dynamic.onnx");
  const Picture wanted = read_picture((folder / "overlay.png").string());
  std::vector<std::uint8_t> rgb(first.rgb.size());
  overlay(first.view(), model.predict(first.view()), model.palette(), rgb.data());
  CHECK(rgb == wanted.rgb);
  check_refused("the labels are 0x0", [&] { overlay(first.view(), {}, {}, rgb.data()); });
  return 0;
}
