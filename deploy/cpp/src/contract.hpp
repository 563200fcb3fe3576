// What a network expects and gives, as the Python side wrote it into the file.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "shape.hpp"

namespace segdeploy {

enum class Output { logits, probabilities, labels };
enum class Upsampling { none, align_corners, half_pixel };

struct Contract {
  std::vector<std::string> classes;
  std::vector<std::array<std::uint8_t, 3>> palette;
  int height = 0;
  int width = 0;
  std::array<float, 3> mean{};
  std::array<float, 3> std{};
  bool is_bgr = false;
  bool takes_bytes = false;  // NHWC uint8: the graph normalises
  Output output = Output::logits;
  std::string precision;
  Upsampling upsampling = Upsampling::none;  // of a labels graph that leaves it to the host
  bool gives_small_map = false;              // scores of any size, which the host enlarges
  bool fuses = false;             // the graph runs several scales, or the mirrored picture, itself
  int multiple = 1;               // of which height and width are multiples, at every scale
  std::vector<Profile> profiles;  // of a dynamic graph with bounds: one; of an engine any

  // Whether the network's own output is labels, and not scores.
  bool gives_labels() const { return output == Output::labels && upsampling == Upsampling::none; }
};

// Parses and checks a contract that stood in `source`. Throws Error.
Contract read_contract(const std::string& text, const std::string& source);
Contract contract_of(const nlohmann::json& values, const std::string& source);

}  // namespace segdeploy
