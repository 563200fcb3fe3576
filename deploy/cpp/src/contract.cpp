#include "contract.hpp"

#include <algorithm>
#include <cmath>

#include "json.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {
namespace {

constexpr int kContractSchema = 2;
constexpr std::size_t kMaxPixels = 100'000'000;
constexpr int kMaxSide = 1 << 16;
// Limits of mean and std within which float32 arithmetic works.
constexpr double kLargestNumber = 1e9;
constexpr float kSmallestDeviation = 1e-9F;
constexpr double kScale = 1.0 / 255.0;  // the factor of bytes before mean and std
constexpr std::ptrdiff_t kLongestName = 100;
constexpr std::size_t kMaxClasses = 255;  // a label is a byte, and one value means "ignored"

// Return whether a UTF-8 name is safe to print. Control characters and marks of direction or of
// lines (U+200E/F, U+2028 to 202E, U+2066 to 2069, U+FEFF) would end a line, move the cursor, or
// make the name look like another text.
bool is_printable(const std::string& name) {
  const auto byte = [&](std::size_t at) {
    return at < name.size() ? static_cast<unsigned char>(name[at]) : 0U;
  };
  for (std::size_t at = 0; at < name.size(); ++at) {
    const unsigned first = byte(at), second = byte(at + 1), third = byte(at + 2);
    if (first < 0x20 || first == 0x7F || (first == 0xC2 && second < 0xA0)) return false;
    if (first == 0xEF && second == 0xBB && third == 0xBF) return false;
    if (first != 0xE2) continue;
    if (second == 0x80 && (third == 0x8E || third == 0x8F || (third >= 0xA8 && third <= 0xAE))) {
      return false;
    }
    if (second == 0x81 && third >= 0xA6 && third <= 0xA9) return false;
  }
  return true;
}

// Return whether all class names are valid, as in dataset.json: printable, 1 to 100 characters,
// unique, and not only spaces.
bool are_names(const std::vector<std::string>& names) {
  return std::all_of(names.begin(), names.end(), [&](const std::string& name) {
    const auto letters = std::count_if(name.begin(), name.end(), [](char letter) {
      return (static_cast<unsigned char>(letter) & 0xC0) != 0x80;
    });
    return std::count(names.begin(), names.end(), name) == 1 && letters > 0 &&
           letters <= kLongestName && is_printable(name) &&
           name.find_first_not_of(' ') != std::string::npos;
  });
}

// Access to the contract's entries. A missing or wrong entry is refused by its name.
class Entries {
 public:
  Entries(const json& values, const std::string& source) : values_(values), source_(source) {}

  template <typename Value>
  Value get(const char* name) const {
    try {
      return values_.at(name).get<Value>();
    } catch (const json::exception&) {
      refuse(name);
    }
  }

  template <typename Value>
  Value one_of(const char* name, const std::vector<std::pair<const char*, Value>>& known) const {
    const auto text = get<std::string>(name);
    for (const auto& [word, value] : known) {
      if (text == word) return value;
    }
    refuse(name);
  }

  std::array<float, 3> three(const char* name) const {
    const auto& numbers = get_list(name, 3);
    std::array<float, 3> found{};
    for (std::size_t at = 0; at < found.size(); ++at) {
      if (!numbers[at].is_number()) refuse(name);
      const auto number = numbers[at].get<double>();
      if (!(std::abs(number) <= kLargestNumber)) refuse(name);
      found[at] = static_cast<float>(number);
    }
    return found;
  }

  std::array<int, 2> size(const json& pair, const char* name) const {
    try {
      if (!pair.is_array() || pair.size() != 2) refuse(name);
      return {whole_number<int>(pair[0], 1, kMaxSide), whole_number<int>(pair[1], 1, kMaxSide)};
    } catch (const json::exception&) {
      refuse(name);
    }
  }

  int whole(const char* name, int least, int most) const {
    try {
      return whole_number<int>(values_[name], least, most);
    } catch (const json::exception&) {
      refuse(name);
    }
  }

  std::vector<std::array<std::uint8_t, 3>> palette(const char* name, std::size_t length) const {
    std::vector<std::array<std::uint8_t, 3>> found;
    try {
      for (const json& color : get_list(name, length)) {
        if (!color.is_array() || color.size() != 3) refuse(name);
        found.push_back({whole_number<std::uint8_t>(color[0], 0, 255),
                         whole_number<std::uint8_t>(color[1], 0, 255),
                         whole_number<std::uint8_t>(color[2], 0, 255)});
      }
    } catch (const json::exception&) {
      refuse(name);
    }
    return found;
  }

  bool has(const char* name) const { return values_.contains(name) && !values_[name].is_null(); }
  const json& operator[](const char* name) const { return values_[name]; }

  [[noreturn]] void refuse(const char* name) const {
    const std::string entry = source_ + ": the contract's '" + name + "' is ";
    if (!values_.contains(name)) throw Error(entry + "missing; export the network again");
    throw Error(entry +
                "wrong, or of a kind that this version does not execute; export the network again");
  }

 private:
  const json& get_list(const char* name, std::size_t length) const {
    if (!values_.contains(name)) refuse(name);
    const json& found = values_[name];
    if (!found.is_array() || found.size() != length) refuse(name);
    return found;
  }

  const json& values_;
  const std::string& source_;
};

Profile read_bounds(const Entries& entries, int height, int width) {
  const json& bounds = entries["bounds"];
  if (!bounds.is_array() || bounds.size() != 3) entries.refuse("bounds");
  const auto low = entries.size(bounds[0], "bounds");
  const auto high = entries.size(bounds[1], "bounds");
  if (low[0] > high[0] || low[1] > high[1]) entries.refuse("bounds");
  try {
    const int most = whole_number<int>(bounds[2], 1, kMaxSide);
    return {{1, low[0], low[1]}, {1, height, width}, {most, high[0], high[1]}};
  } catch (const json::exception&) {
    entries.refuse("bounds");
  }
}

void check_schema(const Entries& entries, const std::string& source) {
  const auto schema = entries.get<std::int64_t>("schema");
  if (schema >= 1 && schema <= kContractSchema) return;
  throw Error(source + ": its contract has schema " + std::to_string(schema) +
              ", this segdeploy reads " + std::to_string(kContractSchema) +
              "; install the segdeploy that wrote it, or export again");
}

void read_classes(const Entries& entries, Contract& contract) {
  contract.classes = entries.get<std::vector<std::string>>("classes");
  if (contract.classes.empty() || contract.classes.size() > kMaxClasses ||
      !are_names(contract.classes)) {
    entries.refuse("classes");
  }
  contract.palette = entries.palette("palette", contract.classes.size());
}

// Return whether the network's channels are blue, green and red; refuse other channels than these.
bool read_is_bgr(const Entries& entries) {
  using Names = std::vector<std::string>;
  if (!entries.has("channels")) {  // schema 1, and the spelling of its first versions
    const char* color = entries.has("colour") ? "colour" : "color";
    return entries.one_of<bool>(color, {{"RGB", false}, {"BGR", true}});
  }
  const auto names = entries.get<Names>("channels");
  if (names == Names{"R", "G", "B"}) return false;
  if (names == Names{"B", "G", "R"}) return true;
  entries.refuse("channels");
}

// The network's input: size, normalization, channel order, layout and resize.
void read_input(const Entries& entries, Contract& contract) {
  if (!entries.has("size")) entries.refuse("size");
  const auto size = entries.size(entries["size"], "size");
  contract.height = size[0];
  contract.width = size[1];
  contract.mean = entries.three("mean");
  contract.std = entries.three("std");
  for (const float deviation : contract.std) {
    if (!(deviation > kSmallestDeviation)) entries.refuse("std");
  }
  contract.is_bgr = read_is_bgr(entries);
  contract.takes_bytes = entries.one_of<bool>("layout", {{"NCHW", false}, {"NHWC", true}});
  if (entries.has("dtype")) entries.one_of<bool>("dtype", {{"uint8", true}});
  if (entries.has("gray")) entries.refuse("gray");
  if (entries.has("source_channels")) entries.refuse("source_channels");
  if (!contract.takes_bytes) {  // a graph of bytes contains the normalization
    if (entries.has("scale") && entries.get<double>("scale") != kScale) entries.refuse("scale");
    if (entries.has("normalization")) {
      entries.one_of<bool>("normalization", {{"f32-affine", true}});
    }
  }
  entries.one_of<bool>("resize", {{"pillow-bilinear", true}});
  if (entries.has("source_size")) entries.refuse("source_size");
  if (entries.has("fit")) entries.one_of<bool>("fit", {{"stretch", true}});
}

// The network's output, and the test-time augmentation inside the graph.
void read_output(const Entries& entries, Contract& contract) {
  contract.output = entries.one_of<Output>("output", {{"logits", Output::logits},
                                                      {"probabilities", Output::probabilities},
                                                      {"labels", Output::labels}});
  if (entries.has("head")) entries.one_of<bool>("head", {{"multiclass", true}});
  for (const char* name : {"min_confidence", "label_ids"}) {
    if (entries.has(name)) entries.refuse(name);
  }
  const auto scales = entries.get<std::vector<double>>("scales");
  if (scales.empty() || !std::all_of(scales.begin(), scales.end(), [](double scale) {
        return scale > 0 && scale <= kLargestNumber;
      })) {
    entries.refuse("scales");
  }
  if (entries.has("fuse")) entries.one_of<bool>("fuse", {{"mean", true}, {"max", true}});
  contract.fuses = scales != std::vector<double>{1.0} || entries.get<bool>("flip");
  if (!entries.has("upsampling")) return;
  // Only a labels contract sets `upsampling`. Other low-resolution scores are resized like any
  // scores.
  const auto upsampling = entries.one_of<Upsampling>(
      "upsampling",
      {{"align-corners", Upsampling::align_corners}, {"half-pixel", Upsampling::half_pixel}});
  if (contract.output == Output::labels) contract.upsampling = upsampling;
  contract.gives_low_resolution_logits = true;
}

// The other sizes that a dynamic network takes.
void read_sizes(const Entries& entries, Contract& contract) {
  if (entries.has("multiple")) contract.multiple = entries.whole("multiple", 1, kMaxSide);
  if (entries.has("bounds")) {
    contract.profiles.push_back(read_bounds(entries, contract.height, contract.width));
  }
}

void check_pixels(const Contract& contract, const std::string& source) {
  std::vector<std::array<int, 2>> sizes = {{contract.height, contract.width}};
  for (const Profile& profile : contract.profiles) {
    sizes.push_back({profile.maximum[1], profile.maximum[2]});
  }
  for (const auto& [height, width] : sizes) {
    if (area(height, width) > kMaxPixels) {
      throw Error(source + ": the contract's input is " + std::to_string(height) + "x" +
                  std::to_string(width) + ", more than " + std::to_string(kMaxPixels) +
                  " pixels; export the network for a smaller size");
    }
  }
}

}  // namespace

Contract read_contract(const std::string& text, const std::string& source) {
  return contract_of(parse_json(text.data(), text.size()), source);
}

Contract contract_of(const json& values, const std::string& source) {
  if (!values.is_object()) throw Error(source + ": its segdeploy contract is not a JSON object");
  const Entries entries(values, source);
  check_schema(entries, source);
  Contract contract;
  read_classes(entries, contract);
  read_input(entries, contract);
  contract.precision = entries.one_of<std::string>(
      "precision",
      {{"fp32", "fp32"}, {"fp16", "fp16"}, {"bf16", "bf16"}, {"int8", "int8"}, {"mixed", "mixed"}});
  read_output(entries, contract);
  read_sizes(entries, contract);
  check_pixels(contract, source);
  return contract;
}

}  // namespace segdeploy
