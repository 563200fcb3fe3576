// The manifest of an engine, `NAME.engine.json`: its properties, its origin, and where it may run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "contract.hpp"

namespace segdeploy {

// A GPU: its name and its compute capability, such as `sm86`.
struct Gpu {
  std::string name;
  std::string compute_capability;
};

// An input or output tensor of the network. `name` is empty if the manifest does not state it.
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
  std::string parent;  // the ONNX file; empty if the manifest does not state it
  Contract contract;

  // Return the command that rebuilds the engine, for the compute capability `target` if given.
  std::string rebuild(const std::string& target = "") const;
};

// Parse and check a manifest. `source` names its file in error messages. Throws Error.
Manifest manifest_of(const std::string& text, const std::string& source);

// An engine's manifest and its plan, whose size and SHA-256 match the manifest.
struct Engine {
  Manifest manifest;
  std::string plan;
};
// Read an engine and the manifest beside it. Throws Error.
Engine read_engine(const std::string& path);

// Refuse an engine that was built by an incompatible version of TensorRT. Throws Error.
void check_version(const Manifest& manifest, const std::string& path, const std::string& here);

// Refuse an engine that was built for another platform or GPU. `gpu` is null if the host has no
// GPU. Throws Error.
void check_host(const Manifest& manifest, const std::string& path, const Gpu* gpu);

}  // namespace segdeploy
