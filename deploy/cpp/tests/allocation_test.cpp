// After its first calls, a model allocates nothing outside the runtime.
#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>
#include <string>

#include "check.hpp"
#include "image_file.hpp"

namespace {

std::atomic<bool> is_counting{false};
std::atomic<int> allocations{0};

bool is_ours(const void* caller) {
  Dl_info info;
  return dladdr(caller, &info) != 0 && info.dli_fname != nullptr &&
         std::strstr(info.dli_fname, "libsegdeploy") != nullptr;
}

void* allocated(std::size_t size, const void* caller) {
  if (is_counting && is_ours(caller)) ++allocations;
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// ONNX Runtime also calls these operators. Only calls from the segdeploy library are counted.
void* operator new(std::size_t size) { return allocated(size, __builtin_return_address(0)); }
void* operator new[](std::size_t size) { return allocated(size, __builtin_return_address(0)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

int main() {
  const std::filesystem::path folder(test_files());
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".onnx" || entry.path().stem() == "text") continue;
    is_counting = true;
    allocations = 0;
    const segdeploy::Model model(entry.path().string());
    CHECK(allocations > 0);  // otherwise nothing is counted at all
    const auto image = segdeploy::read_image((folder / "images" / "0_odd.png").string());
    segdeploy::Labels labels;
    for (int run = 0; run < 2; ++run) model.predict(image.view(), labels);
    allocations = 0;
    for (int run = 0; run < 5; ++run) model.predict(image.view(), labels);
    if (allocations != 0) {
      std::cerr << entry.path() << ": " << allocations << " allocations in 5 calls\n";
      return 1;
    }
    is_counting = false;
  }
  return 0;
}
