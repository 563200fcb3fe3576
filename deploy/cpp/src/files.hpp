// Files read whole.
#pragma once

#include <string>

namespace segdeploy {

// The whole content of a file. Throws Error where there is none.
std::string content_of(const std::string& path);

}  // namespace segdeploy
