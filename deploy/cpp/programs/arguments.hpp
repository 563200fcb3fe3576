// What the programs are told: options with values, flags, and other words.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// The text with control characters as escapes: a name in a file must not drive a terminal.
std::string printable(const std::string& text);

class Arguments {
 public:
  // Throws Error, which ends with `usage`, for an option that is neither in `valued` nor `flags`.
  Arguments(int count, char** words, const std::set<std::string>& valued,
            const std::set<std::string>& flags, const std::string& usage);

  bool has(const std::string& name) const { return flags_.count(name) != 0; }
  bool names(const std::string& option) const { return values_.count(option) != 0; }
  std::string text(const std::string& name, const std::string& otherwise) const;
  // A positive number. Throws Error for anything else.
  double number(const std::string& name, double otherwise) const;
  const std::vector<std::string>& others() const { return others_; }

  // --model, and what --threads, --provider, --contexts and --pictures-on say of how to open it.
  std::string model() const { return text("--model", ""); }
  Options options() const;

 private:
  std::map<std::string, std::string> values_;
  std::set<std::string> flags_;
  std::vector<std::string> others_;
};

}  // namespace segdeploy
