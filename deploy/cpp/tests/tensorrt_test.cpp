// NVIDIA's runtime on a host without a GPU: the library loads, and refuses data that is no plan.
// SEGDEPLOY_TEST_RTX names a TensorRT-RTX library of the headers' family, SEGDEPLOY_TEST_OTHER_RTX
// a TensorRT-RTX library of another family.
#include "tensorrt_library.hpp"

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "check.hpp"

namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// TensorRT's lean runtime of the headers' family, on a host where CUDA cannot start: the invalid
// pointer that it returns is never used. A library of another family is refused before that.
void check_lean() {
  segdeploy::Options options;
  options.tensorrt = variable("SEGDEPLOY_TEST_LEAN");
  if (options.tensorrt.empty()) return;
  segdeploy::TensorRtLibrary library("tensorrt", options);
  CHECK(library.version() == variable("SEGDEPLOY_TEST_LEAN_VERSION"));
  const std::string garbage(2000, 'x');
  for (int times = 0; times < 2; ++times) {
    check_refused("garbage.engine: tensorrt " + library.version() + " makes no runtime here (",
                  [&] { library.read(garbage, false, "garbage.engine"); });
  }
  check_refused("CUDA initialization failure",
                [&] { library.read(garbage, true, "garbage.engine"); });
  options.tensorrt = variable("SEGDEPLOY_TEST_LEAN_OTHER");
  check_refused("and this library was compiled for TensorRT 10",
                [&] { segdeploy::TensorRtLibrary("tensorrt", options); });
}

}  // namespace

int main() {
  check_lean();
  segdeploy::Options options;
  options.tensorrt = variable("SEGDEPLOY_TEST_RTX");
  if (options.tensorrt.empty()) return 0;
  segdeploy::TensorRtLibrary library("tensorrt-rtx", options);
  CHECK(library.version() == variable("SEGDEPLOY_TEST_RTX_VERSION"));
  const std::string garbage =
      "this is no plan, but it is long enough to be read as the head of one";
  check_refused("garbage.engine: tensorrt-rtx " + library.version() + " cannot open it (",
                [&] { library.read(garbage, false, "garbage.engine"); });
  check_refused("Serialization assertion", [&] { library.read(garbage, false, "garbage.engine"); });
  check_refused("cannot open it", [&] { library.read("", false, "empty.engine"); });
  const std::string plan_path = variable("SEGDEPLOY_TEST_PLAN");
  if (!plan_path.empty()) {
    std::ifstream file(plan_path, std::ios::binary);
    const std::string plan((std::istreambuf_iterator<char>(file)), {});
    CHECK(plan.size() > 1000);
    for (const std::size_t size : {plan.size() / 2, std::size_t{64}}) {
      check_refused("cannot open it",
                    [&] { library.read(plan.substr(0, size), false, "cut.engine"); });
    }
  }
  // TensorRT-RTX is refused as TensorRT, and so is a library of another family.
  check_refused("is TensorRT-RTX " + library.version() +
                    ", and this library was compiled for "
                    "TensorRT 10",
                [&] { segdeploy::TensorRtLibrary("tensorrt", options); });
  options.tensorrt = variable("SEGDEPLOY_TEST_OTHER_RTX");
  if (options.tensorrt.empty()) return 0;
  check_refused("and this library was compiled for TensorRT-RTX 1.0 to 1.4",
                [&] { segdeploy::TensorRtLibrary("tensorrt-rtx", options); });
  options.tensorrt = "/nowhere/libtensorrt_rtx.so.1";
  check_refused("in SEGDEPLOY_TENSORRT_RTX or Options::tensorrt",
                [&] { segdeploy::TensorRtLibrary("tensorrt-rtx", options); });
  return 0;
}
