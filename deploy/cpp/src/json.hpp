// JSON of a file that anybody may have written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>

namespace segdeploy {

using nlohmann::json;

// What the text holds; a discarded value, which is no object, where it is no JSON, or nested so deep
// that copies of it would exhaust the stack.
json parse_json(const char* text, std::size_t size);

// A whole number within limits, which get<int> would cut or wrap. Throws json::type_error.
template <typename Value>
Value whole_number(const json& value, std::int64_t low, std::int64_t high) {
  const bool is_large =
      value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(high);
  if (!value.is_number_integer() || is_large || value.get<std::int64_t>() < low ||
      value.get<std::int64_t>() > high) {
    throw json::type_error::create(302, "no whole number within its limits", &value);
  }
  return static_cast<Value>(value.get<std::int64_t>());
}

}  // namespace segdeploy
