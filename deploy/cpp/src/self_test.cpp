#include "self_test.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "golden.hpp"

namespace segdeploy {
namespace {

// Preprocessing is float32 arithmetic on bytes: more than rounding is another resize, mean or std.
constexpr float kMostInputDifference = 1e-4F;

// Python's limits by precision: the largest difference of a score, and the least share of labels.
std::pair<float, float> limits_of(const std::string& precision) {
  if (precision == "fp32") return {1e-3F, 0.999F};
  if (precision == "fp16") return {0.05F, 0.995F};
  if (precision == "bf16") return {0.3F, 0.98F};
  return {0.5F, 0.98F};  // int8 and mixed
}

// The largest difference of samples from the values that they were taken of.
template <typename Value>
float largest(const std::vector<float>& samples, const Value* values, std::size_t size) {
  float found = 0;
  for (std::size_t at = 0; at < samples.size(); ++at) {
    const auto ours = static_cast<float>(values[sample_place(at, samples.size(), size)]);
    const float off = std::abs(ours - samples[at]);
    found = off <= found ? found : off;  // NaN counts
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

SelfTest::Picture compare(const Inference& inference, const GoldenVector& wanted) {
  const ImageView image{wanted.image.data(), wanted.height, wanted.width};
  Workspace work;
  ComparingReader reader(wanted.output);
  inference.run(image, work, reader);
  const Prepared& prepared = work.prepared;
  SelfTest::Picture found;
  found.input = inference.contract().takes_bytes
                    ? largest(wanted.input, prepared.bytes.data(), prepared.bytes.size())
                    : largest(wanted.input, prepared.floats.data(), prepared.floats.size());
  const auto [low, high] = std::minmax_element(wanted.output.begin(), wanted.output.end());
  found.output = reader.difference / (*high > *low ? *high - *low : 1.0F);
  // By the way that pictures go here, which on a GPU is another one.
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
  std::string precision = inference.contract().precision;
  // TensorRT multiplies float32 as TF32, which has as many digits as half.
  const bool is_engine = inference.backend().name().rfind("tensorrt", 0) == 0;
  if (precision == "fp32" && is_engine) precision = "fp16";
  SelfTest found;
  for (const GoldenVector& wanted : read_golden(golden)) {
    const auto picture = compare(inference, wanted);
    const auto place = "picture " + std::to_string(found.pictures.size()) + ": ";
    found.pictures.push_back(picture);
    if (!found.complaint.empty()) continue;
    const auto [most_output, least_agreement] = limits_of(precision);
    if (!(picture.input <= kMostInputDifference)) {
      found.complaint = place + "the network's input differs by " + std::to_string(picture.input);
    } else if (has_scores && !(picture.output <= most_output)) {
      found.complaint = place + "the network's output differs by " +
                        std::to_string(picture.output) + " of its range";
    } else if (!(picture.agreement >= least_agreement)) {
      found.complaint =
          place + std::to_string(100 * picture.agreement) + " % of the labels are the reference's";
    }
  }
  return found;
}

}  // namespace segdeploy
