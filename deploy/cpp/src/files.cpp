#include "files.hpp"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <system_error>

#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

namespace fs = std::filesystem;

void check_regular(const std::string& path) {
  std::error_code error;
  const auto kind = fs::status(path, error).type();
  if (kind == fs::file_type::not_found) throw Error(path + ": no such file");
  if (kind == fs::file_type::directory) throw Error(path + ": is a folder, not a file");
  if (kind == fs::file_type::none) throw Error(path + ": cannot be read (" + error.message() + ")");
  if (kind != fs::file_type::regular) throw Error(path + ": is not a regular file");
}

std::string content_of(const std::string& path) {
  check_regular(path);
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path + ": cannot be read (" + std::strerror(errno) + ")");
  std::string content(static_cast<std::size_t>(fs::file_size(path)), '\0');
  file.read(content.data(), static_cast<std::streamsize>(content.size()));
  content.resize(static_cast<std::size_t>(file.gcount()));
  return content;
}

void write_whole(const std::string& path, const std::string& content) {
  std::error_code error;
  const fs::path target = fs::weakly_canonical(path, error);  // follows links
  if (error) throw Error(path + ": cannot be written (" + error.message() + ")");
  if (fs::exists(target) && !fs::is_regular_file(target)) {
    throw Error(path + ": is not a regular file, and is never replaced; give another name");
  }
  const fs::path unfinished = target.parent_path() / ("." + target.filename().string() + "." +
                                                      std::to_string(std::random_device{}()));
  std::ofstream file(unfinished, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (file) fs::rename(unfinished, target, error);
  if (!file || error) {
    const std::string reason = error ? error.message() : std::strerror(errno);
    fs::remove(unfinished, error);
    throw Error(path + ": cannot be written (" + reason + ")");
  }
}

}  // namespace segdeploy
