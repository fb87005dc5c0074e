// AVX-512 with VNNI.
#pragma once
#include <immintrin.h>

inline f32x16 from_half(const uint16_t* p) {
  return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}

inline void to_half(f32x16 v, uint16_t* p) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}

// Every byte's bits from A on (in qwords 0 and 1, from B in the next two, ...), and others above them. Plain shifts
// share the port of the products; where bits can be chosen freely (VBMI), that is done on another one.
template <int A, int B, int C, int D>
inline __m512i shifted_right(__m512i v) {
#ifdef __AVX512VBMI__
  constexpr int64_t kBytes = 0x3830282018100800, kOne = 0x0101010101010101;
  const __m512i from = _mm512_setr_epi64(kBytes + A * kOne, kBytes + A * kOne, kBytes + B * kOne, kBytes + B * kOne,
                                         kBytes + C * kOne, kBytes + C * kOne, kBytes + D * kOne, kBytes + D * kOne);
  return _mm512_multishift_epi64_epi8(from, v);
#else
  return _mm512_srlv_epi64(v, _mm512_setr_epi64(A, A, B, B, C, C, D, D));
#endif
}

template <int B>
inline __m512i unpack(const uint8_t*& p) {
  if constexpr (B == 8) {
    const __m512i out = _mm512_loadu_si512(p);
    p += 64;
    return out;
  }
  __m512i out = _mm512_setzero_si512();
  if constexpr (B & 4) {
    const __m512i w = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p));
    out = _mm512_and_si512(shifted_right<0, 0, 4, 4>(w), _mm512_set1_epi8(15));
    p += 32;
  }
  if constexpr (B & 2) {
    const __m512i w = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
    __m512i two = shifted_right<0, 2, 4, 6>(w);
    two = _mm512_and_si512(two, _mm512_set1_epi8(3));
    if constexpr (B & 4) two = _mm512_slli_epi16(two, 4);
    out = _mm512_or_si512(out, two);
    p += 16;
  }
  if constexpr (B & 1) {
    uint64_t bits;
    __builtin_memcpy(&bits, p, 8);
    out = _mm512_mask_add_epi8(out, bits, out, _mm512_set1_epi8(1 << (B & 6)));
    p += 8;
  }
  return out;
}

template <bool Wide>
struct Sum {
  __m512i high = _mm512_setzero_si512(), low = _mm512_setzero_si512();
  void add(__m512i codes, const Quantised& x, int column) {
    int32_t four;
    __builtin_memcpy(&four, x.high + column, 4);
    high = _mm512_dpbusd_epi32(high, codes, _mm512_set1_epi32(four));
    if constexpr (Wide) {
      __builtin_memcpy(&four, x.low + column, 4);
      low = _mm512_dpbusd_epi32(low, codes, _mm512_set1_epi32(four));
    }
  }
  i32x16 value() const {
    return (i32x16)(Wide ? _mm512_add_epi32(_mm512_slli_epi32(high, 8), low) : high);
  }
};
