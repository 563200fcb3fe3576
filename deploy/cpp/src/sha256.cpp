#include "sha256.hpp"

#include <array>
#include <cstdint>
#include <cstring>

namespace segdeploy {
namespace {

constexpr std::size_t kBlock = 64;

constexpr std::uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t rotate_right(std::uint32_t word, int by) {
  return (word >> by) | (word << (32 - by));
}

void take_block(std::array<std::uint32_t, 8>& state, const unsigned char* block) {
  std::uint32_t words[64];
  for (int at = 0; at < 16; ++at) {
    words[at] = std::uint32_t{block[4 * at]} << 24 | std::uint32_t{block[4 * at + 1]} << 16 |
                std::uint32_t{block[4 * at + 2]} << 8 | std::uint32_t{block[4 * at + 3]};
  }
  for (int at = 16; at < 64; ++at) {
    const std::uint32_t early = words[at - 15];
    const std::uint32_t late = words[at - 2];
    words[at] = words[at - 16] + (rotate_right(early, 7) ^ rotate_right(early, 18) ^ (early >> 3)) +
                words[at - 7] + (rotate_right(late, 17) ^ rotate_right(late, 19) ^ (late >> 10));
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (int at = 0; at < 64; ++at) {
    const std::uint32_t first = h +
                                (rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25)) +
                                ((e & f) ^ (~e & g)) + kRounds[at] + words[at];
    const std::uint32_t second = (rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22)) +
                                 ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + first;
    d = c;
    c = b;
    b = a;
    a = first + second;
  }
  const std::uint32_t added[] = {a, b, c, d, e, f, g, h};
  for (std::size_t at = 0; at < state.size(); ++at) state[at] += added[at];
}

}  // namespace

std::string sha256(const char* data, std::size_t size) {
  std::array<std::uint32_t, 8> state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const auto* bytes = reinterpret_cast<const unsigned char*>(data);
  const std::size_t whole = size / kBlock * kBlock;
  for (std::size_t at = 0; at < whole; at += kBlock) take_block(state, bytes + at);
  // Padding: the remaining bytes, a one bit, and the length in bits at the end of the last block.
  unsigned char tail[2 * kBlock] = {};
  const std::size_t left = size - whole;
  if (left > 0) std::memcpy(tail, bytes + whole, left);
  tail[left] = 0x80;
  const std::size_t end = left + 9 > kBlock ? 2 * kBlock : kBlock;
  for (std::size_t at = 0; at < 8; ++at) {
    tail[end - 1 - at] = static_cast<unsigned char>((std::uint64_t{size} * 8) >> (8 * at));
  }
  for (std::size_t at = 0; at < end; at += kBlock) take_block(state, tail + at);
  std::string text;
  for (const std::uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 0xF];
  }
  return text;
}

}  // namespace segdeploy
