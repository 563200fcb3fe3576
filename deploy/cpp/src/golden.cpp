#include "golden.hpp"

#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "files.hpp"
#include "json.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {
namespace {

constexpr const char* kKey = "segdeploy.golden";
constexpr int kGoldenSchema = 2;
constexpr std::size_t kLengthBytes = 8;  // the header's length, little-endian, before the header
constexpr std::size_t kMaxVectors = 64;
constexpr std::size_t kMaxBytes = std::size_t{1} << 30;

class File {
 public:
  File(std::string bytes, const std::string& path) : path_(path), bytes_(std::move(bytes)) {
    std::uint64_t length = 0;
    if (bytes_.size() < kLengthBytes) refuse("it is cut off");
    for (std::size_t at = 0; at < kLengthBytes; ++at) {
      length |= std::uint64_t{static_cast<unsigned char>(bytes_[at])} << (8 * at);
    }
    if (length > bytes_.size() - kLengthBytes) refuse("it is cut off");
    start_ = kLengthBytes + static_cast<std::size_t>(length);
    header_ = parse_json(bytes_.data() + kLengthBytes, static_cast<std::size_t>(length));
    if (!header_.is_object()) refuse("its header is no JSON object");
  }

  bool has(const std::string& name) const { return header_.contains(name); }

  // What the header says of the vectors.
  json described() const {
    try {
      const auto text = header_.at("__metadata__").at(kKey).get<std::string>();
      return parse_json(text.data(), text.size());
    } catch (const json::exception&) {
      refuse("no header of this schema");
    }
  }

  // Return the values of an array, and set its shape. Every number in the header is checked.
  template <typename Value>
  std::vector<Value> values(const std::string& name, const char* type,
                            std::vector<std::size_t>& shape) const {
    std::size_t begin = 0, end = 0, count = 1;
    try {
      const json& entry = header_.at(name);
      if (entry.at("dtype").get<std::string>() != type) refuse(name + " is of another type");
      shape = entry.at("shape").get<std::vector<std::size_t>>();
      begin = entry.at("data_offsets").at(0).get<std::size_t>();
      end = entry.at("data_offsets").at(1).get<std::size_t>();
    } catch (const json::exception&) {
      refuse(name + " is damaged");
    }
    const std::size_t held = bytes_.size() - start_;
    for (const std::size_t side : shape) {
      if (side == 0 || side > held || count > held / side) refuse(name + " has no such shape");
      count *= side;
    }
    if (begin > end || end > held || end - begin != count * sizeof(Value)) {
      refuse(name + " is cut off");
    }
    std::vector<Value> found(count);
    std::memcpy(found.data(), bytes_.data() + start_ + begin, end - begin);
    return found;
  }

  [[noreturn]] void refuse(const std::string& reason) const {
    throw Error(path_ + ": holds no golden vectors (" + reason + "); build the engine again");
  }

 private:
  std::string path_;
  std::string bytes_;
  std::size_t start_ = 0;
  json header_;
};

std::map<std::string, Tolerance> tolerances_of(const json& described) {
  std::map<std::string, Tolerance> found;
  for (const auto& [precision, one] : described.items()) {
    found[precision] = {one.at("labels").get<float>(), one.at("scores").get<float>()};
  }
  return found;
}

}  // namespace

Golden read_golden(const std::string& path) {
  std::error_code missing;  // content_of reports it
  if (std::filesystem::file_size(path, missing) > kMaxBytes && !missing) {
    throw Error(path + ": is larger than any golden vectors");
  }
  return golden_of(content_of(path), path);
}

Golden golden_of(std::string bytes, const std::string& source) {
  const File file(std::move(bytes), source);
  Golden found;
  try {
    const json described = file.described();
    if (described.at("schema").get<int>() != kGoldenSchema) file.refuse("no header of this schema");
    const json& tolerances = described.at("tolerances");
    found.input = tolerances.at("input").get<float>();
    found.graph = tolerances_of(tolerances.at("graph"));
    found.engine = tolerances_of(tolerances.at("engine"));
  } catch (const json::exception&) {
    file.refuse("its header is damaged");
  }
  while (found.vectors.size() < kMaxVectors) {
    const std::string index = "_" + std::to_string(found.vectors.size());
    if (!file.has("image" + index)) break;
    GoldenVector vector;
    std::vector<std::size_t> shape, labels, samples;
    vector.image = file.values<std::uint8_t>("image" + index, "U8", shape);
    vector.labels = file.values<std::uint8_t>("labels" + index, "U8", labels);
    vector.input = file.values<float>("input" + index, "F32", samples);
    vector.output = file.values<float>("output" + index, "F32", samples);
    if (shape.size() != 3 || shape[2] != 3 || labels.size() != 2 || labels[0] != shape[0] ||
        labels[1] != shape[1]) {
      file.refuse("its images and labels have other shapes");
    }
    vector.height = static_cast<int>(shape[0]);
    vector.width = static_cast<int>(shape[1]);
    found.vectors.push_back(std::move(vector));
  }
  if (found.vectors.empty()) file.refuse("it has no image");
  return found;
}

std::size_t sample_place(std::size_t index, std::size_t count, std::size_t size) {
  return count < 2 ? 0 : index * (size - 1) / (count - 1);
}

}  // namespace segdeploy
