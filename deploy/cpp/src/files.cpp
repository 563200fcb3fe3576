#include "files.hpp"

#include <filesystem>
#include <fstream>

#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || !std::filesystem::is_regular_file(path)) throw Error(path + ": no such file");
  std::string content(static_cast<std::size_t>(std::filesystem::file_size(path)), '\0');
  file.read(content.data(), static_cast<std::streamsize>(content.size()));
  content.resize(static_cast<std::size_t>(file.gcount()));
  return content;
}

}  // namespace segdeploy
