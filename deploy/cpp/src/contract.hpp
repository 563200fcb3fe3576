// What a network expects and gives, as the Python side wrote it into the file.
#pragma once

#include <array>
#include <string>
#include <vector>

namespace segdeploy {

enum class Output { logits, probabilities, labels };
enum class Upsampling { none, align_corners, half_pixel };

struct Contract {
  std::vector<std::string> classes;
  int height = 0;
  int width = 0;
  std::array<float, 3> mean{};
  std::array<float, 3> std{};
  bool is_bgr = false;
  bool takes_bytes = false;  // NHWC uint8: the graph normalises
  Output output = Output::logits;
  std::string precision;
  Upsampling upsampling = Upsampling::none;
};

// Parses and checks a contract that stood in `source`. Throws Error.
Contract read_contract(const std::string& text, const std::string& source);

}  // namespace segdeploy
