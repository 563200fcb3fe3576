// Compare the library's labels with Python's, in every pixel format and from several threads.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "image_file.hpp"

namespace {

namespace fs = std::filesystem;
using segdeploy::Format;
using segdeploy::ImageView;
using segdeploy::Labels;
using segdeploy::Model;
using segdeploy::RgbImage;

// Return the image with `channels` bytes per pixel, and with padding bytes after each row.
std::vector<std::uint8_t> laid_out(const RgbImage& image, Format format, int channels,
                                   std::size_t stride) {
  std::vector<std::uint8_t> bytes(stride * static_cast<std::size_t>(image.height), 201);
  for (int row = 0; row < image.height; ++row) {
    for (int column = 0; column < image.width; ++column) {
      const auto at = static_cast<std::size_t>(row * image.width + column) * 3;
      const std::uint8_t* from = image.rgb.data() + at;
      std::uint8_t* to = bytes.data() + static_cast<std::size_t>(row) * stride +
                         static_cast<std::size_t>(column * channels);
      std::copy(from, from + 3, to);
      if (format == Format::bgr) std::swap(to[0], to[2]);
    }
  }
  return bytes;
}

void check_formats(const Model& model, const RgbImage& image, const Labels& wanted) {
  const struct {
    Format format;
    int channels;
  } kinds[] = {{Format::rgb, 3}, {Format::bgr, 3}, {Format::rgba, 4}};
  for (const auto& kind : kinds) {
    const auto stride = static_cast<std::size_t>(image.width * kind.channels + 5);
    const auto bytes = laid_out(image, kind.format, kind.channels, stride);
    const ImageView view{bytes.data(), image.height, image.width, stride, kind.format};
    CHECK(model.predict(view).data == wanted.data);
  }
  RgbImage gray = image;
  std::vector<std::uint8_t> one;
  for (std::size_t at = 0; at < gray.rgb.size(); at += 3) {
    one.push_back(gray.rgb[at]);
    gray.rgb[at + 1] = gray.rgb[at + 2] = gray.rgb[at];
  }
  const ImageView view{one.data(), gray.height, gray.width, 0, Format::gray};
  CHECK(model.predict(view).data == model.predict(gray.view()).data);
}

void check_threads(const Model& model, const RgbImage& image, const Labels& wanted) {
  std::vector<int> equal(4, 0);
  std::vector<std::thread> threads;
  for (int& count : equal) {
    threads.emplace_back([&] {
      Labels labels;
      for (int run = 0; run < 5; ++run) {
        model.predict(image.view(), labels);
        count += labels.data == wanted.data ? 1 : 0;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const int count : equal) CHECK(count == 5);
}

void check_refusals(const Model& model, const fs::path& folder) {
  std::uint8_t pixel[3] = {};
  check_refused("the image is 0x5", [&] { model.predict({pixel, 0, 5}); });
  check_refused("at no address", [&] { model.predict({nullptr, 1, 1}); });
  check_refused("stride is 2 bytes, and a row has 3", [&] { model.predict({pixel, 1, 1, 2}); });
  check_refused("no such file", [&] { Model((folder / "none.onnx").string()); });
  const auto text = folder / "text.onnx";
  std::ofstream(text) << "no graph";
  check_refused("ONNX Runtime cannot load it", [&] { Model(text.string()); });
  check_refused("is neither an .onnx file nor an .engine",
                [&] { Model((folder / "plain.txt").string()); });
}

}  // namespace

int main() {
  const fs::path folder(test_files());
  int graphs = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const auto kind = entry.path().extension();
    if ((kind != ".onnx" && kind != ".engine") || entry.path().stem() == "text") continue;
    ++graphs;
    const Model model(entry.path().string());
    int images = 0;
    for (const auto& wanted : fs::directory_iterator(folder / entry.path().stem())) {
      ++images;
      const RgbImage image =
          segdeploy::read_image((folder / "images" / wanted.path().filename()).string());
      const RgbImage ids = segdeploy::read_image(wanted.path().string());
      Labels labels;
      for (std::size_t at = 0; at < ids.rgb.size(); at += 3) labels.data.push_back(ids.rgb[at]);
      CHECK(model.predict(image.view()).data == labels.data);
      check_formats(model, image, labels);
      if (kind == ".onnx") check_threads(model, image, labels);  // gpu_test does it for engines
    }
    CHECK(images > 0);
    Model first(entry.path().string());
    const Model second = std::move(first);
    CHECK(!second.classes().empty());
    check_refusals(second, folder);
  }
  CHECK(graphs > 0);
  return 0;
}
