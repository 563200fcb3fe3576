// SHA-256 (FIPS 180-4), by which a manifest identifies the bytes of its engine.
#pragma once

#include <cstddef>
#include <string>

namespace segdeploy {

// Return the hash in hexadecimal digits.
std::string sha256(const char* data, std::size_t size);

}  // namespace segdeploy
