// What the tests share: a check that says where it failed, and what an error must say.
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
