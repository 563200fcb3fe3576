// Golden vectors: pictures, and what the reference made of each, stage by stage. They travel in a
// safetensors file, which holds arrays and nothing that runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace segdeploy {

struct GoldenVector {
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> image;   // (height, width, 3) RGB
  std::vector<std::uint8_t> labels;  // (height, width)
  std::vector<float> input;          // samples of the network's input
  std::vector<float> output;         // and of its raw output
};

// Reads and checks a file of golden vectors. Throws Error.
std::vector<GoldenVector> read_golden(const std::string& path);
std::vector<GoldenVector> golden_of(std::string bytes, const std::string& source);

// Where sample `index` of `count` lies among `size` values.
std::size_t sample_place(std::size_t index, std::size_t count, std::size_t size);

}  // namespace segdeploy
