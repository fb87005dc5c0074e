// AVX2 with F16C and FMA.
#pragma once
#include <immintrin.h>

inline f32x16 from_half(const uint16_t* p) {
  f32x16 out;
  ((__m256*)&out)[0] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  ((__m256*)&out)[1] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)));
  return out;
}

inline void to_half(f32x16 v, uint16_t* p) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(((__m256*)&v)[0], _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(((__m256*)&v)[1], _MM_FROUND_TO_NEAREST_INT));
}

struct Codes {
  __m256i low, high;  // rows 0-7 and 8-15
};

template <int B>
inline Codes unpack(const uint8_t*& p) {
  Codes out;
  if constexpr (B == 8) {
    out = {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
    p += 64;
    return out;
  }
  out = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  if constexpr (B & 4) {
    const __m256i w = _mm256_loadu_si256((const __m256i*)p), mask = _mm256_set1_epi8(15);
    out = {_mm256_and_si256(w, mask), _mm256_and_si256(_mm256_srli_epi16(w, 4), mask)};
    p += 32;
  }
  if constexpr (B & 2) {
    const __m256i w = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p)), mask = _mm256_set1_epi8(3);
    __m256i a = _mm256_and_si256(_mm256_srlv_epi32(w, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)), mask);
    __m256i b = _mm256_and_si256(_mm256_srlv_epi32(w, _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6)), mask);
    if constexpr (B & 4) a = _mm256_slli_epi16(a, 4), b = _mm256_slli_epi16(b, 4);
    out = {_mm256_or_si256(out.low, a), _mm256_or_si256(out.high, b)};
    p += 16;
  }
  if constexpr (B & 1) {
    uint32_t w[2];
    __builtin_memcpy(w, p, 8);
    const __m256i by = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28), spread = _mm256_set1_epi32(0x00204081);
    auto bits = [&](uint32_t half) {
      const __m256i nibbles = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(int(half)), by), _mm256_set1_epi32(15));
      const __m256i ones = _mm256_and_si256(_mm256_mullo_epi32(nibbles, spread), _mm256_set1_epi32(0x01010101));
      return _mm256_slli_epi16(ones, B & 6);
    };
    out = {_mm256_or_si256(out.low, bits(w[0])), _mm256_or_si256(out.high, bits(w[1]))};
    p += 8;
  }
  return out;
}

template <bool Wide>
struct Sum {
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  void add(const Codes& codes, const Quantised& x, int column) {
    // columns 0 and 2 of a row are the 16-bit halves of its lane, 1 and 3 are those of the lane shifted
    const __m256i even = _mm256_set1_epi32(x.pairs[column >> 1]), odd = _mm256_set1_epi32(x.pairs[(column >> 1) + 1]);
    const __m256i mask = _mm256_set1_epi32(0x00ff00ff);
    auto dot = [&](__m256i sum, __m256i w) {
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(w, mask), even));
      return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(_mm256_srli_epi16(w, 8), mask), odd));
    };
    low = dot(low, codes.low);
    high = dot(high, codes.high);
  }
  i32x16 value() const {
    i32x16 out;
    ((__m256i*)&out)[0] = low;
    ((__m256i*)&out)[1] = high;
    return out;
  }
};
