// Reads and atomic writes of whole files.
#pragma once

#include <string>

namespace segdeploy {

// Throw Error unless `path` is a regular file; links are followed. Opening a FIFO would wait for
// its writer.
void check_regular(const std::string& path);
// Return the whole content of a regular file. Throws Error if it cannot be read.
std::string content_of(const std::string& path);
// Write a file under a temporary name, then rename it, so that a crash or a full disk leaves the
// old file intact. Throws Error, also if `path` is a device, a FIFO or a socket, which is never
// replaced.
void write_whole(const std::string& path, const std::string& content);

}  // namespace segdeploy
