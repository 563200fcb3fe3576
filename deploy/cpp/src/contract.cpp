#include "contract.hpp"

#include <nlohmann/json.hpp>

#include "segdeploy/segdeploy.hpp"

namespace segdeploy {
namespace {

using nlohmann::json;

constexpr int kSchema = 1;
constexpr int kLongestSide = 1 << 15;
constexpr std::size_t kMostClasses = 256;

[[noreturn]] void refuse(const std::string& source, const std::string& name) {
  throw Error(source + ": its contract has no usable '" + name + "'; export it again");
}

template <typename Value>
Value get(const json& values, const char* name, const std::string& source) {
  try {
    return values.at(name).get<Value>();
  } catch (const json::exception&) {
    refuse(source, name);
  }
}

template <typename Value>
Value one_of(const json& values, const char* name, const std::string& source,
             const std::vector<std::pair<const char*, Value>>& known) {
  const auto text = get<std::string>(values, name, source);
  for (const auto& [word, value] : known) {
    if (text == word) return value;
  }
  refuse(source, name);
}

std::array<float, 3> three(const json& values, const char* name, const std::string& source) {
  const auto numbers = get<std::vector<double>>(values, name, source);
  if (numbers.size() != 3) refuse(source, name);
  return {static_cast<float>(numbers[0]), static_cast<float>(numbers[1]),
          static_cast<float>(numbers[2])};
}

}  // namespace

Contract read_contract(const std::string& text, const std::string& source) {
  const json values = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!values.is_object()) throw Error(source + ": its segdeploy contract is not a JSON object");
  const auto schema = get<int>(values, "schema", source);
  if (schema != kSchema) {
    throw Error(source + ": its contract has schema " + std::to_string(schema) +
                ", this segdeploy reads " + std::to_string(kSchema) +
                "; install the segdeploy that wrote it, or export again");
  }
  Contract contract;
  contract.classes = get<std::vector<std::string>>(values, "classes", source);
  if (contract.classes.empty() || contract.classes.size() > kMostClasses) {
    refuse(source, "classes");
  }
  const auto size = get<std::vector<int>>(values, "size", source);
  if (size.size() != 2 || size[0] < 1 || size[1] < 1 || size[0] > kLongestSide ||
      size[1] > kLongestSide) {
    refuse(source, "size");
  }
  contract.height = size[0];
  contract.width = size[1];
  contract.mean = three(values, "mean", source);
  contract.std = three(values, "std", source);
  for (const float deviation : contract.std) {
    if (!(deviation > 0)) refuse(source, "std");
  }
  contract.is_bgr = one_of<bool>(values, "colour", source, {{"RGB", false}, {"BGR", true}});
  contract.takes_bytes = one_of<bool>(values, "layout", source, {{"NCHW", false}, {"NHWC", true}});
  one_of<bool>(values, "resize", source, {{"pillow-bilinear", true}});
  contract.precision = get<std::string>(values, "precision", source);
  contract.output = one_of<Output>(values, "output", source,
                                   {{"logits", Output::logits},
                                    {"probabilities", Output::probabilities},
                                    {"labels", Output::labels}});
  if (values.contains("upsampling") && !values["upsampling"].is_null()) {
    contract.upsampling = one_of<Upsampling>(values, "upsampling", source,
                                             {{"align-corners", Upsampling::align_corners},
                                              {"half-pixel", Upsampling::half_pixel}});
  }
  return contract;
}

}  // namespace segdeploy
