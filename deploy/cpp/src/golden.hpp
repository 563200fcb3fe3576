// Golden vectors: images, and the reference's result of each stage for each image. They are stored
// in a safetensors file, which holds arrays and no executable code.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace segdeploy {

struct GoldenVector {
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> image;   // (height, width, 3) RGB
  std::vector<std::uint8_t> labels;  // (height, width)
  std::vector<float> input;          // samples of the network's input
  std::vector<float> output;         // samples of the network's raw output
};

// Tolerances of a precision: minimum label agreement, maximum score difference over the range.
struct Tolerance {
  float labels = 1;
  float scores = 0;
};

struct Golden {
  std::vector<GoldenVector> vectors;
  float input = 0;                         // maximum difference of the network's input
  std::map<std::string, Tolerance> graph;  // by precision, of an .onnx file
  std::map<std::string, Tolerance> engine;
};

// Read and check a file of golden vectors. Throws Error.
Golden read_golden(const std::string& path);
Golden golden_of(std::string bytes, const std::string& source);

// Return the position of sample `index` of `count` in an array of `size` values.
std::size_t sample_place(std::size_t index, std::size_t count, std::size_t size);

}  // namespace segdeploy
