#include "arguments.hpp"

#include <cmath>
#include <cstdlib>

namespace segdeploy {

std::string printable(const std::string& text) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string shown;
  for (const char one : text) {
    const auto byte = static_cast<unsigned char>(one);
    if (byte >= 0x20 && byte != 0x7F) {
      shown += one;
    } else {
      shown += std::string("\\x") + kDigits[byte >> 4U] + kDigits[byte & 15U];
    }
  }
  return shown;
}

Arguments::Arguments(int count, char** words, const std::set<std::string>& valued,
                     const std::set<std::string>& flags, const std::string& usage) {
  for (int at = 1; at < count; ++at) {
    const std::string word = words[at];
    if (word.rfind("--", 0) != 0) {
      others_.push_back(word);
    } else if (flags.count(word) != 0) {
      flags_.insert(word);
    } else if (valued.count(word) == 0) {
      throw Error(word + ": no such option; " + usage);
    } else if (at + 1 == count) {
      throw Error(word + " needs a value; " + usage);
    } else {
      values_[word] = words[++at];
    }
  }
}

std::string Arguments::text(const std::string& name, const std::string& otherwise) const {
  const auto found = values_.find(name);
  return found == values_.end() ? otherwise : found->second;
}

double Arguments::number(const std::string& name, double otherwise) const {
  const auto found = values_.find(name);
  if (found == values_.end()) return otherwise;
  char* end = nullptr;
  const double value = std::strtod(found->second.c_str(), &end);
  if (found->second.empty() || *end != '\0' || !(value > 0) || !std::isfinite(value)) {
    throw Error(name + " " + found->second + ": is a positive number");
  }
  return value;
}

Options Arguments::options() const {
  Options options;
  const auto count = [&](const char* name, int otherwise, int most) {
    const std::string given = text(name, std::to_string(otherwise));
    char* end = nullptr;
    const long value = std::strtol(given.c_str(), &end, 10);
    if (values_.count(name) != 0 && (*end != '\0' || value < 1 || value > most)) {
      throw Error(std::string(name) + " " + given + ": is 1 to " + std::to_string(most));
    }
    return static_cast<int>(value);
  };
  options.threads = count("--threads", options.threads, 1024);
  options.contexts = count("--contexts", options.contexts, 64);
  options.provider = text("--provider", "");
  const std::string place = text("--preprocess-on", "gpu");
  if (place != "cpu" && place != "gpu") throw Error("--preprocess-on " + place + ": is cpu or gpu");
  options.gpu_preprocessing = place == "gpu";
  return options;
}

}  // namespace segdeploy
