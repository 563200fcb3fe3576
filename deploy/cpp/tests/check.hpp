// Shared by the tests: a check that reports its location, and a check of error messages.
#pragma once

#include <cstdlib>
#include <iostream>
#include <string>

#include "segdeploy/segdeploy.hpp"

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::cerr << __FILE__ << ":" << __LINE__ << ": not so: " #condition << "\n"; \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

// Return the folder of the test files that tests/test_cpp.py made.
inline std::string test_files() {
  const char* folder = std::getenv("SEGDEPLOY_TEST_FILES");
  if (folder == nullptr) {
    std::cerr << "set SEGDEPLOY_TEST_FILES; tests/test_cpp.py makes them, and calls ctest\n";
    std::exit(1);
  }
  return folder;
}

template <typename Call>
void check_refused(const std::string& words, Call call) {
  try {
    call();
  } catch (const segdeploy::Error& error) {
    if (std::string(error.what()).find(words) != std::string::npos) return;
    std::cerr << "said: " << error.what() << "\nand not: " << words << "\n";
    std::exit(1);
  }
  std::cerr << "was not refused, but should have said: " << words << "\n";
  std::exit(1);
}
