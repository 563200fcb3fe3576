// Every content of a file must be parsed or refused, without a read out of bounds. The first byte
// selects the parser: of contracts, manifests or golden vectors.
#include <cstddef>
#include <cstdint>
#include <string>

#include "contract.hpp"
#include "golden.hpp"
#include "manifest.hpp"
#include "segdeploy/segdeploy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto* text = reinterpret_cast<const char*>(data) + 1;
  try {
    switch (data[0] % 3) {
      case 0:
        segdeploy::read_contract(std::string(text, size - 1), "fuzz");
        break;
      case 1:
        segdeploy::manifest_of(std::string(text, size - 1), "fuzz").rebuild();
        break;
      default:
        segdeploy::golden_of(std::string(text, size - 1), "fuzz");
    }
  } catch (const segdeploy::Error&) {
  }
  return 0;
}
