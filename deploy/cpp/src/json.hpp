// JSON parsing for files that are not trusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>

namespace segdeploy {

using nlohmann::json;

// Parse a text. Returns a discarded value, which is not an object, if the text is not JSON, or if
// it is nested so deeply that copying the value would exhaust the stack.
json parse_json(const char* text, std::size_t size);

// Return an integer within limits. Throws json::type_error for other values, which get<int> would
// truncate or wrap.
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
