// A network's contract: its input, output and classes, as Python wrote them into the file.
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
  bool takes_bytes = false;  // NHWC uint8 input: the graph normalizes
  Output output = Output::logits;
  std::string precision;
  Upsampling upsampling = Upsampling::none;  // how the host upsamples before it computes labels
  bool gives_low_resolution_logits = false;  // scores of any size, which the host upsamples
  bool fuses = false;                        // the graph itself runs several scales or flips
  int multiple = 1;                          // divides height and width at every scale
  std::vector<Profile> profiles;             // a dynamic graph with bounds has one, an engine any

  // Return whether the network itself outputs labels, not scores.
  bool gives_labels() const { return output == Output::labels && upsampling == Upsampling::none; }
};

// Parse and check a contract. `source` names its file in error messages. Throws Error.
Contract read_contract(const std::string& text, const std::string& source);
Contract contract_of(const nlohmann::json& values, const std::string& source);

}  // namespace segdeploy
