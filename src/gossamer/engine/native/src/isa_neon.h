// ARM's NEON with the dot product instructions of ARMv8.2, which multiply bytes of one sign: codes of up to 7 bits are
// never negative either way, those of 8 bits are moved down by 128 and their sum up again.
#pragma once
#include <arm_neon.h>

inline f32x16 from_half(const uint16_t* p) {
  f32x16 out;
  for (int i = 0; i < 4; i++) ((float32x4_t*)&out)[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return out;
}

inline void to_half(f32x16 v, uint16_t* p) {
  for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(((float32x4_t*)&v)[i])));
}

// Rows 0-3, 4-7, 8-11 and 12-15, less 128 where `Moved`.
template <bool Moved>
struct Codes {
  uint8x16_t rows[4];
};

template <int B>
inline Codes<B == 8> unpack(const uint8_t*& p) {
  Codes<B == 8> out;
  if constexpr (B == 8) {
    for (int i = 0; i < 4; i++) out.rows[i] = veorq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(128));
    p += 64;
    return out;
  }
  if constexpr (B & 4) {
    for (int i = 0; i < 2; i++) {
      const uint8x16_t w = vld1q_u8(p + 16 * i);
      out.rows[i] = vandq_u8(w, vdupq_n_u8(15));
      out.rows[i + 2] = vshrq_n_u8(w, 4);
    }
    p += 32;
  } else {
    for (int i = 0; i < 4; i++) out.rows[i] = vdupq_n_u8(0);
  }
  if constexpr (B & 2) {
    const uint8x16_t w = vld1q_u8(p), mask = vdupq_n_u8(3);
    const uint8x16_t twos[4] = {vandq_u8(w, mask), vandq_u8(vshrq_n_u8(w, 2), mask), vandq_u8(vshrq_n_u8(w, 4), mask),
                                vshrq_n_u8(w, 6)};
    for (int i = 0; i < 4; i++) out.rows[i] = vorrq_u8(out.rows[i], vshlq_n_u8(twos[i], B & 4));
    p += 16;
  }
  if constexpr (B & 1) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    for (int i = 0; i < 4; i++) {
      const uint8x16_t spread = vcombine_u8(vdup_n_u8(p[2 * i]), vdup_n_u8(p[2 * i + 1]));
      out.rows[i] = vorrq_u8(out.rows[i], vandq_u8(vtstq_u8(spread, bit), vdupq_n_u8(1 << (B & 6))));
    }
    p += 8;
  }
  return out;
}

// High bytes of the inputs, and low ones where `Wide`. `moved` sums the inputs to codes that were moved, in every lane.
template <bool Wide>
struct Sum {
  int32x4_t high[4] = {}, low[4] = {}, moved_high = {}, moved_low = {};
  template <bool Moved>
  void add(const Codes<Moved>& codes, const Quantised& x, int column) {
    dot(high, moved_high, codes, x.high + column);
    if constexpr (Wide) dot(low, moved_low, codes, x.low + column);
  }
  i32x16 value() const {
    i32x16 out;
    for (int i = 0; i < 4; i++) {
      const int32x4_t of_high = back(high[i], moved_high);
      ((int32x4_t*)&out)[i] = Wide ? vaddq_s32(vshlq_n_s32(of_high, 8), back(low[i], moved_low)) : of_high;
    }
    return out;
  }

 private:
  template <bool Moved>
  static void dot(int32x4_t* sums, int32x4_t& moved, const Codes<Moved>& codes, const int8_t* inputs) {
    int32_t bytes;
    __builtin_memcpy(&bytes, inputs, 4);
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(bytes));
    for (int i = 0; i < 4; i++) sums[i] = vdotq_s32(sums[i], vreinterpretq_s8_u8(codes.rows[i]), four);
    if constexpr (Moved) moved = vdotq_s32(moved, vdupq_n_s8(1), four);
  }
  static int32x4_t back(int32x4_t sum, int32x4_t moved) { return vaddq_s32(sum, vshlq_n_s32(moved, 7)); }
};
