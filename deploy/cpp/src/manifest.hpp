// `NAME.engine.json`: what an engine is, what it was made from, and where it may run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "contract.hpp"

namespace segdeploy {

// A GPU: its name, and its compute capability as `sm86`.
struct Gpu {
  std::string name;
  std::string compute_capability;
};

// An end of the network; `name` is empty where nobody said it.
struct TensorInfo {
  std::string name;
  std::string dtype;
  Sides shape;
};

struct Manifest {
  std::string engine;
  std::string sha256;
  std::size_t bytes = 0;
  std::string backend;  // tensorrt or tensorrt-rtx
  std::string backend_version;
  std::string platform;
  std::vector<std::string> compute_capabilities;
  TensorInfo input;
  TensorInfo output;
  std::string weights;
  bool version_compatible = false;
  bool hardware_compatible = false;
  std::optional<std::int64_t> workspace_mib;
  std::string parent;  // empty if nobody said it
  Contract contract;

  // The command that builds the engine again, for another GPU if one is named.
  std::string rebuild(const std::string& target = "") const;
};

// Parses and checks a manifest that stood in `source`. Throws Error.
Manifest manifest_of(const std::string& text, const std::string& source);

// An engine's manifest and its bytes, which are those that the manifest tells of. Throws Error.
struct Engine {
  Manifest manifest;
  std::string plan;
};
Engine read_engine(const std::string& path);

// Refuses an engine that another version of TensorRT built. Throws Error.
void check_version(const Manifest& manifest, const std::string& path, const std::string& here);

// Refuses an engine that was built for another platform or GPU; null where there is none.
void check_place(const Manifest& manifest, const std::string& path, const Gpu* gpu);

}  // namespace segdeploy
