// A shared library that is opened at run time, so that one binary runs with or without it.
#pragma once

#include <string>

namespace segdeploy {

class Library {
 public:
  // Open a library by name or path. Throws Error with `advice` on how to provide it.
  Library(const std::string& name, const std::string& advice);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  template <typename Function>
  Function symbol(const char* name) const {
    return reinterpret_cast<Function>(find(name));
  }

 private:
  void* find(const char* name) const;

  std::string name_;
  void* handle_;
};

}  // namespace segdeploy
