// The few operations that each processor does in its own way, in the compiler's portable vectors.
#pragma once
#include <cstring>

inline f32x16 from_half(const uint16_t* p) {
  f32x16 out;
  for (int i = 0; i < 16; i++) {
    const uint32_t sign = (p[i] & 0x8000u) << 16, rest = p[i] & 0x7fffu;
    uint32_t bits;
    if (rest >= 0x7c00u) bits = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
    else if (rest >= 0x400u) bits = sign | ((rest << 13) + 0x38000000u);
    else {
      const float tiny = float(rest) * 5.9604644775390625e-8f;
      std::memcpy(&bits, &tiny, 4);
      bits |= sign;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    out[i] = value;
  }
  return out;
}

inline void to_half(f32x16 v, uint16_t* p) {
  for (int i = 0; i < 16; i++) {
    float value = v[i];
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    uint32_t half;
    if (bits >= 0x47800000u) half = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    else if (bits < 0x38800000u) {
      std::memcpy(&value, &bits, 4);
      half = uint32_t(__builtin_rintf(value * 16777216.0f));
    } else {
      const uint32_t odd = bits >> 13 & 1;
      half = (bits - 0x38000000u + 0xfffu + odd) >> 13;
    }
    p[i] = uint16_t(sign | half);
  }
}

// Codes of 16 rows x 4 columns, unsigned, a row's four in one 32-bit lane, from 8 * B bytes: first the lowest 4 bits
// (rows 0-7 in the low halves of bytes, 8-15 in the high ones), then 2 bits (four rows apart), then 1.
template <int B>
inline u32x16 unpack(const uint8_t*& p) {
  u32x16 out = {};
  if constexpr (B == 8) {
    std::memcpy(&out, p, 64);
    p += 64;
    return out;
  }
  if constexpr (B & 4) {
    uint32_t w[8];
    std::memcpy(w, p, 32);
    p += 32;
    for (int i = 0; i < 8; i++) {
      out[i] = w[i] & 0x0f0f0f0fu;
      out[i + 8] = w[i] >> 4 & 0x0f0f0f0fu;
    }
  }
  if constexpr (B & 2) {
    uint32_t w[4];
    std::memcpy(w, p, 16);
    p += 16;
    for (int i = 0; i < 16; i++) out[i] |= (w[i & 3] >> 2 * (i >> 2) & 0x03030303u) << (B & 4);
  }
  if constexpr (B & 1) {
    uint64_t w;
    std::memcpy(&w, p, 8);
    p += 8;
    for (int i = 0; i < 16; i++) out[i] |= ((uint32_t(w >> 4 * i) & 15u) * 0x00204081u & 0x01010101u) << (B & 6);
  }
  return out;
}

// Sums of codes times inputs, one for each of 16 rows.
template <bool Wide>
struct Sum {
  i32x16 total = {};
  void add(u32x16 codes, const Quantised& x, int column) {
    for (int c = 0; c < 4; c++) {
      const int32_t input = Wide ? x.high[column + c] * 256 + x.low[column + c] : x.high[column + c];
      total += (i32x16)(codes >> 8 * c & 255u) * input;
    }
  }
  i32x16 value() const { return total; }
};
