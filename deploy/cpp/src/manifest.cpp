#include "manifest.hpp"

#include <sys/utsname.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "files.hpp"
#include "json.hpp"
#include "segdeploy/segdeploy.hpp"
#include "sha256.hpp"

namespace segdeploy {
namespace {

namespace fs = std::filesystem;

constexpr int kManifestSchema = 2;
constexpr std::size_t kLargest = std::size_t{64} << 20;  // bytes; manifests usually have a few KB
constexpr int kAmpere = 80;
constexpr std::int64_t kMaxDimension = 1 << 16;

[[noreturn]] void refuse(const std::string& source, const std::string& name) {
  throw Error(source + ": the manifest's '" + name +
              "' is missing or wrong; build the engine again");
}

template <typename Value>
Value get(const json& values, const char* name, const std::string& source) {
  try {
    return values.at(name).get<Value>();
  } catch (const json::exception&) {
    refuse(source, name);
  }
}

// Return whether a name is a plain file name, which cannot lead out of the manifest's folder.
bool is_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos;
}

Shape shape_of(const json& sides) {
  Shape shape{};
  for (std::size_t side = 0; side < shape.size(); ++side) {
    shape[side] = whole_number<int>(sides.at(side), 1, kMaxDimension);
  }
  return shape;
}

std::vector<Profile> read_profiles(const json& listed, const std::string& source) {
  std::vector<Profile> found;
  if (!listed.is_array()) refuse(source, "profiles");
  try {
    for (const json& one : listed) {
      const Profile profile{shape_of(one.at("minimum")), shape_of(one.at("optimum")),
                            shape_of(one.at("maximum"))};
      if (!profile.takes(profile.optimum)) refuse(source, "profiles");
      found.push_back(profile);
    }
  } catch (const json::exception&) {
    refuse(source, "profiles");
  }
  return found;
}

TensorInfo read_tensor_info(const json& values, const char* name, const std::string& source) {
  const json end = get<json>(values, name, source);
  if (!end.is_object() || !end.contains("name")) refuse(source, name);
  TensorInfo found;
  if (!end["name"].is_null()) found.name = get<std::string>(end, "name", source);
  found.dtype = get<std::string>(end, "dtype", source);
  for (const json& side : get<json>(end, "shape", source)) {
    if (side.is_string()) {
      found.shape.push_back({-1, side.get<std::string>()});
    } else if (side.is_number_integer() && side.get<std::int64_t>() >= 0) {
      found.shape.push_back({side.get<std::int64_t>(), ""});
    } else {
      refuse(source, name);
    }
  }
  return found;
}

// Return a word quoted for a shell, if it needs quotes.
std::string shell_word(const std::string& word) {
  const bool is_plain = std::all_of(word.begin(), word.end(), [](unsigned char letter) {
    return std::isalnum(letter) != 0 ||
           std::string("@%+=:,./-_").find(static_cast<char>(letter)) != std::string::npos;
  });
  if (is_plain && !word.empty()) return word;
  std::string text = "'";
  for (const char letter : word) text += letter == '\'' ? "'\"'\"'" : std::string(1, letter);
  return text + "'";
}

std::string text_of(const Shape& shape) {
  return std::to_string(shape[0]) + "x" + std::to_string(shape[1]) + "x" + std::to_string(shape[2]);
}

std::string with_commas(std::size_t number) {
  std::string text = std::to_string(number);
  for (auto at = static_cast<int>(text.size()) - 3; at > 0; at -= 3) {
    text.insert(static_cast<std::size_t>(at), ",");
  }
  return text;
}

std::string joined(const std::vector<std::string>& words, const char* between) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

std::vector<int> parts_of(const std::string& version) {
  std::vector<int> parts;
  std::istringstream stream(version);
  for (std::string part; std::getline(stream, part, '.');) parts.push_back(std::atoi(part.c_str()));
  return parts;
}

// Return the platform (operating system and processor) that an engine is bound to, such as
// `linux-x86_64`.
std::string host_platform() {
  utsname names;
  if (uname(&names) != 0) return "unknown";
  std::string text = std::string(names.sysname) + "-" + names.machine;
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
  return text;
}

void check_schema(const json& values, const std::string& source) {
  if (!values.is_object()) {
    throw Error(source + ": is no manifest (no JSON object); build the engine again");
  }
  const json schema = values.value("schema", json());
  if (schema == kManifestSchema) return;
  const bool is_number = schema.is_number_integer();
  throw Error(source + ": its manifest has schema " +
              (is_number ? std::to_string(schema.get<std::int64_t>()) : schema.type_name()) +
              ", this segdeploy reads " + std::to_string(kManifestSchema) +
              "; build the engine again, or install the segdeploy that wrote it");
}

// The engine's file, and what built it for which devices.
void read_engine(const json& values, Manifest& found, const std::string& source) {
  found.engine = get<std::string>(values, "engine", source);
  if (!is_file_name(found.engine)) refuse(source, "engine");
  found.sha256 = get<std::string>(values, "sha256", source);
  if (!values.contains("bytes") || !values["bytes"].is_number_unsigned()) refuse(source, "bytes");
  found.bytes = values["bytes"].get<std::size_t>();
  found.backend = get<std::string>(values, "backend", source);
  if (found.backend != "tensorrt" && found.backend != "tensorrt-rtx") refuse(source, "backend");
  found.backend_version = get<std::string>(values, "backend_version", source);
  found.platform = get<std::string>(values, "platform", source);
  found.compute_capabilities =
      get<std::vector<std::string>>(values, "compute_capabilities", source);
}

void read_options(const json& options, Manifest& found, const std::string& source) {
  if (!options.is_object()) refuse(source, "options");
  const auto is_set = [&](const char* name) { return options.value(name, json()) == json(true); };
  found.version_compatible = is_set("version_compatible");
  found.hardware_compatible = is_set("hardware_compatible");
  const json weights = options.value("weights", json());
  if (weights.is_string()) found.weights = weights.get<std::string>();
  const json workspace = options.value("workspace_mib", json());
  if (workspace.is_number_integer()) found.workspace_mib = workspace.get<std::int64_t>();
}

// Return the name of the ONNX file; empty if the manifest has none.
std::string read_parent(const json& parent, const std::string& source) {
  if (parent.is_null()) return {};
  if (!parent.is_string() || !is_file_name(parent.get<std::string>())) refuse(source, "parent");
  return parent.get<std::string>();
}

}  // namespace

Manifest manifest_of(const std::string& text, const std::string& source) {
  if (text.size() > kLargest) {
    throw Error(source +
                ": is no manifest (it is larger than any manifest); build the engine again");
  }
  const json values = parse_json(text.data(), text.size());
  check_schema(values, source);
  Manifest found;
  read_engine(values, found, source);
  found.input = read_tensor_info(values, "input", source);
  found.output = read_tensor_info(values, "output", source);
  const auto profiles = read_profiles(get<json>(values, "profiles", source), source);
  read_options(get<json>(values, "options", source), found, source);
  found.parent = read_parent(get<json>(values, "parent", source), source);
  const json contract = get<json>(values, "contract", source);
  if (!contract.is_object()) refuse(source, "contract");
  found.contract = contract_of(contract, source);
  found.contract.profiles = profiles;  // of the engine, not of the graph
  return found;
}

std::string Manifest::rebuild(const std::string& target) const {
  std::vector<std::string> words = {"segdeploy", "build-engine",
                                    parent.empty() ? "MODEL.onnx" : parent, "--backend", backend};
  const auto add = [&](const std::string& option, const std::string& value) {
    words.push_back(option);
    if (!value.empty()) words.push_back(value);
  };
  if (backend == "tensorrt-rtx") {
    const auto targets = target.empty() ? compute_capabilities : std::vector<std::string>{target};
    for (const auto& one : targets) add("--target", one);
  }
  for (const Profile& profile : contract.profiles) {
    add("--min", text_of(profile.minimum));
    add("--opt", text_of(profile.optimum));
    add("--max", text_of(profile.maximum));
  }
  if (weights == "refittable" || weights == "stripped") add("--" + weights, "");
  if (version_compatible) add("--version-compatible", "");
  if (hardware_compatible) add("--hardware-compatible", "");
  if (workspace_mib) add("--workspace", std::to_string(*workspace_mib));
  add("-o", engine);
  for (auto& word : words) word = shell_word(word);
  return joined(words, " ");
}

Engine read_engine(const std::string& path) {
  const fs::path engine(path);
  const fs::path beside = path + ".json";
  if (!fs::is_regular_file(engine)) throw Error(path + ": no such file");
  if (!fs::is_regular_file(beside)) {
    throw Error(path + ": has no manifest " + beside.filename().string() +
                ", which describes the engine; copy the manifest with it, build it again "
                "with `segdeploy build-engine`, or say what it is with `segdeploy adopt`");
  }
  Engine found{manifest_of(content_of(beside.string()), beside.string()), {}};
  const Manifest& manifest = found.manifest;
  if (manifest.engine != engine.filename().string()) {
    throw Error(beside.string() + ": is the manifest of " + manifest.engine +
                "; keep an engine's name, or rename both and its entry 'engine'");
  }
  found.plan = content_of(path);
  if (found.plan.size() != manifest.bytes) {
    throw Error(path + ": has " + with_commas(found.plan.size()) +
                " bytes, and its manifest states " + with_commas(manifest.bytes) +
                ": it was cut off or replaced; copy it again, or build it: " + manifest.rebuild());
  }
  if (sha256(found.plan.data(), found.plan.size()) != manifest.sha256) {
    throw Error(path +
                ": its bytes are not those that its manifest states: it was changed or "
                "replaced; copy both again, or build it: " +
                manifest.rebuild());
  }
  return found;
}

void check_version(const Manifest& manifest, const std::string& path, const std::string& here) {
  const std::string& built = manifest.backend_version;
  if (built == here) return;
  if (manifest.version_compatible && parts_of(built) <= parts_of(here)) return;
  throw Error(path + ": was built by " + manifest.backend + " " + built + ", and " + here +
              " is installed; a plan runs with the version that built it: " + manifest.rebuild());
}

void check_host(const Manifest& manifest, const std::string& path, const Gpu* gpu) {
  const auto host = host_platform();
  if (manifest.platform != host) {
    throw Error(path + ": was built for " + manifest.platform + ", and this is " + host +
                "; build it here: " + manifest.rebuild(gpu ? gpu->compute_capability : ""));
  }
  if (gpu == nullptr) {
    throw Error(path +
                ": needs an NVIDIA GPU and its driver, and there is none here (`segdeploy "
                "doctor` looks for them); on a CPU run " +
                (manifest.parent.empty() ? "the ONNX file" : manifest.parent) + " instead");
  }
  const auto& built_for = manifest.compute_capabilities;
  const std::string& here = gpu->compute_capability;
  if (std::find(built_for.begin(), built_for.end(), here) != built_for.end()) return;
  if (manifest.hardware_compatible && std::atoi(here.c_str() + 2) >= kAmpere) return;
  throw Error(path + ": was built for " + joined(built_for, ", ") + ", and this GPU (" + gpu->name +
              ") is " + here + ": " + manifest.rebuild(here));
}

}  // namespace segdeploy
