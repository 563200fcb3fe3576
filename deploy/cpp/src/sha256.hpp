// SHA-256 (FIPS 180-4), which a manifest names its engine's bytes by.
#pragma once

#include <cstddef>
#include <string>

namespace segdeploy {

// The hash in hexadecimal digits.
std::string sha256(const char* data, std::size_t size);

}  // namespace segdeploy
