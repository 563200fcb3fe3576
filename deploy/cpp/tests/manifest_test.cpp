// An engine is opened by its manifest, or refused with Python's message. tests/test_cpp.py made the
// engine in SEGDEPLOY_TEST_FILES, damaged engines, and Python's messages for them.
#include "manifest.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "check.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace fs = std::filesystem;

namespace {

void check_hashes() {
  CHECK(segdeploy::sha256("", 0) ==
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(segdeploy::sha256("abc", 3) ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  // Cover every length of the last block.
  std::string all;
  for (std::size_t size = 0; size < 130; ++size) {
    const std::string text(size, 'a');
    all += segdeploy::sha256(text.data(), text.size());
  }
  CHECK(segdeploy::sha256(all.data(), all.size()) ==
        "c665ed20ef30f158e90c7e921d8182bc0943c4b087a82f64a18d417bcdfadce7");
}

// Return the message of opening an engine with a simulated GPU or version; empty if it opens.
std::string message_of(const nlohmann::json& one, const std::string& path) {
  try {
    const auto engine = segdeploy::read_engine(path);
    const segdeploy::Gpu gpu{one.value("gpu", ""), one.value("capability", "")};
    segdeploy::check_version(engine.manifest, path,
                             one.value("version", engine.manifest.backend_version));
    segdeploy::check_host(engine.manifest, path, gpu.name.empty() ? nullptr : &gpu);
    return "";
  } catch (const segdeploy::Error& error) {
    return error.what();
  }
}

// Copying deeply nested JSON would exhaust the stack.
void check_depth() {
  const std::string closed = std::string(200000, '[') + std::string(200000, ']');
  for (const char* name : {"options", "contract", "input", "profiles", "parent"}) {
    const auto text = std::string("{\"schema\": 2, \"") + name + "\": " + closed + "}";
    check_refused("is no manifest", [&] { segdeploy::manifest_of(text, "deep.json"); });
  }
}

}  // namespace

int main() {
  check_hashes();
  check_depth();
  const fs::path folder = fs::path(test_files()) / "manifests";
  if (!fs::is_directory(folder)) return 0;  // some sets of test files have no such cases
  int cases = 0;
  std::ifstream file(folder / "cases.json");
  for (const auto& one : nlohmann::json::parse(file)) {
    const auto path = (folder / one.at("engine").get<std::string>()).string();
    const auto found = message_of(one, path);
    const auto wanted = one.at("message").get<std::string>();
    ++cases;
    if (found == wanted) continue;
    std::cerr << "said:   " << found << "\nPython: " << wanted << "\n";
    return 1;
  }
  CHECK(cases > 5);
  return 0;
}
