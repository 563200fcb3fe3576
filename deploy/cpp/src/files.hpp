// Files read whole and written whole.
#pragma once

#include <string>

namespace segdeploy {

// Throws Error if there is no regular file (through links): a FIFO would wait for its writer.
void check_regular(const std::string& path);
// The whole content of a regular file. Throws Error where there is none.
std::string content_of(const std::string& path);
// Writes a file under another name, and renames it: after a crash or on a full disk the old file is
// there still. Throws Error, also if `path` is a device, a FIFO or a socket, which is never replaced.
void write_whole(const std::string& path, const std::string& content);

}  // namespace segdeploy
