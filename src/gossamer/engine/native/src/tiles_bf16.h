// Products by AVX-512's bfloat16: 8 rows of inputs and up to 32 of weights at a time.
#pragma once

constexpr int kPanel = 1024;
constexpr bool kTilesBeatBytes = false;  // products of bytes are twice as many in one instruction

struct TileState {
  explicit TileState(bool) {}
};

// 16 or 32 rows of inputs `a` (row stride in elements) times a panel of 16 or 32 weight rows, onto or into `out`.
template <int Rows, int Tiles>
inline void product(const uint16_t* a, int64_t stride, const __m512i* panel, int count, float* out, int64_t width, bool onto) {
  constexpr int kTogether = 8;
  for (int row = 0; row < 16 * Rows; row += kTogether, a += kTogether * stride, out += kTogether * width) {
    __m512 sums[kTogether][Tiles];
    for (int r = 0; r < kTogether; r++)
      for (int t = 0; t < Tiles; t++) sums[r][t] = onto ? _mm512_loadu_ps(out + r * width + 16 * t) : _mm512_setzero_ps();
    for (int k = 0; k < count; k += 2) {
      __m512bh weights[Tiles];
      for (int t = 0; t < Tiles; t++) weights[t] = (__m512bh)panel[t * (kPanel / 2) + k / 2];
      for (int r = 0; r < kTogether; r++) {
        int32_t two;
        __builtin_memcpy(&two, a + r * stride + k, 4);
        const __m512bh inputs = (__m512bh)_mm512_set1_epi32(two);
        for (int t = 0; t < Tiles; t++) sums[r][t] = _mm512_dpbf16_ps(sums[r][t], inputs, weights[t]);
      }
    }
    for (int r = 0; r < kTogether; r++)
      for (int t = 0; t < Tiles; t++) _mm512_storeu_ps(out + r * width + 16 * t, sums[r][t]);
  }
}
