#include "library.hpp"

#include <dlfcn.h>

#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

Library::Library(const std::string& name, const std::string& advice)
    : name_(name), handle_(dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (handle_ == nullptr) {
    const char* reason = dlerror();
    throw Error(name + ": cannot be opened (" + (reason ? reason : "no reason") + "); " + advice);
  }
}

// The library is never closed. Runtimes keep threads and exit handlers, and closing a runtime while
// the program exits is a known crash.
Library::~Library() = default;

void* Library::find(const char* name) const {
  void* found = dlsym(handle_, name);
  if (found == nullptr)
    throw Error(name_ + ": has no function " + name + "; it is another library");
  return found;
}

}  // namespace segdeploy
