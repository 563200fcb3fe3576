// Command-line arguments of the programs: options with values, flags, and positional arguments.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// Return the text with control characters escaped: a name from a file must not control a terminal.
std::string printable(const std::string& text);

class Arguments {
 public:
  // Throws Error for an option that is neither in `valued` nor in `flags`, or that lacks its value.
  // The message ends with `usage`.
  Arguments(int count, char** words, const std::set<std::string>& valued,
            const std::set<std::string>& flags, const std::string& usage);

  bool has(const std::string& name) const { return flags_.count(name) != 0; }
  bool names(const std::string& option) const { return values_.count(option) != 0; }
  std::string text(const std::string& name, const std::string& otherwise) const;
  // Return a positive number. Throws Error for any other value.
  double number(const std::string& name, double otherwise) const;
  const std::vector<std::string>& others() const { return others_; }

  // Return the model's path (--model), and the options for opening it, which --threads, --provider,
  // --contexts and --preprocess-on set.
  std::string model() const { return text("--model", ""); }
  Options options() const;

 private:
  std::map<std::string, std::string> values_;
  std::set<std::string> flags_;
  std::vector<std::string> others_;
};

}  // namespace segdeploy
