#include "json.hpp"

namespace segdeploy {
namespace {

constexpr int kDeepest = 64;

bool is_too_deep(const char* text, std::size_t size) {
  int depth = 0;
  bool is_quoted = false;
  for (std::size_t at = 0; at < size; ++at) {
    const char letter = text[at];
    if (is_quoted) {
      if (letter == '\\') ++at;
      is_quoted = letter != '"';
    } else if (letter == '"') {
      is_quoted = true;
    } else if (letter == '[' || letter == '{') {
      if (++depth > kDeepest) return true;
    } else if (letter == ']' || letter == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

json parse_json(const char* text, std::size_t size) {
  if (is_too_deep(text, size)) return json(json::value_t::discarded);
  return json::parse(text, text + size, nullptr, /*allow_exceptions=*/false);
}

}  // namespace segdeploy
