#include "self_test.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "golden.hpp"

namespace segdeploy {
namespace {

// Return the largest difference between the reference's samples and the values at their positions.
template <typename Value>
float largest(const std::vector<float>& samples, const Value* values, std::size_t size) {
  float found = 0;
  for (std::size_t at = 0; at < samples.size(); ++at) {
    const auto ours = static_cast<float>(values[sample_place(at, samples.size(), size)]);
    const float off = std::abs(ours - samples[at]);
    found = off <= found ? found : off;  // NaN counts as a difference
  }
  return found;
}

class ComparingReader final : public Reader {
 public:
  explicit ComparingReader(const std::vector<float>& wanted) : wanted_(wanted) {}

  void read(const OutputView& output) override {
    difference = output.scores != nullptr ? largest(wanted_, output.scores, output.values())
                                          : largest(wanted_, output.labels, output.values());
  }

  float difference = 0;

 private:
  const std::vector<float>& wanted_;
};

SelfTest::Difference compare(const Inference& inference, const GoldenVector& wanted) {
  const ImageView image{wanted.image.data(), wanted.height, wanted.width};
  Workspace work;
  ComparingReader reader(wanted.output);
  inference.run(image, work, reader);
  const Prepared& prepared = work.prepared;
  SelfTest::Difference found;
  found.input = inference.contract().takes_bytes
                    ? largest(wanted.input, prepared.bytes.data(), prepared.bytes.size())
                    : largest(wanted.input, prepared.floats.data(), prepared.floats.size());
  const auto [low, high] = std::minmax_element(wanted.output.begin(), wanted.output.end());
  found.output = reader.difference / (*high > *low ? *high - *low : 1.0F);
  // Use the normal path of images, which differs from `run` on a GPU.
  std::vector<std::uint8_t> labels(wanted.labels.size());
  inference.predict(image, labels.data());
  std::size_t equal = 0;
  for (std::size_t at = 0; at < labels.size(); ++at) equal += labels[at] == wanted.labels[at];
  found.agreement = static_cast<float>(equal) / static_cast<float>(labels.size());
  return found;
}

}  // namespace

SelfTest self_test(const Inference& inference, const std::string& golden) {
  const bool has_scores = inference.contract().output != Output::labels;
  const bool is_engine = inference.backend().name().rfind("tensorrt", 0) == 0;
  const Golden file = read_golden(golden);
  const auto& tolerances = is_engine ? file.engine : file.graph;
  const auto limit = tolerances.find(inference.contract().precision);
  if (limit == tolerances.end()) {
    throw Error(golden + ": states no tolerance for " + inference.contract().precision +
                "; build the engine again");
  }
  SelfTest found;
  for (const GoldenVector& wanted : file.vectors) {
    const auto image = compare(inference, wanted);
    const auto place = "image " + std::to_string(found.images.size()) + ": ";
    found.images.push_back(image);
    if (!found.failure_message.empty()) continue;
    if (!(image.input <= file.input)) {
      found.failure_message =
          place + "the network's input differs by " + std::to_string(image.input);
    } else if (has_scores && !(image.output <= limit->second.scores)) {
      found.failure_message = place + "the network's output differs by " +
                              std::to_string(image.output) + " of its range";
    } else if (!(image.agreement >= limit->second.labels)) {
      found.failure_message =
          place + std::to_string(100 * image.agreement) + " % of the labels are the reference's";
    }
  }
  return found;
}

}  // namespace segdeploy
