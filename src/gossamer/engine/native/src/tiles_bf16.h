// Products by AVX-512's bfloat16: 8 rows of inputs and up to 32 of weights at a time.
#pragma once

constexpr int kPanel = 1024;
constexpr bool kTilesBeatBytes = false;  // products of bytes are twice as many in one instruction

struct TileState {
  explicit TileState(bool) {}
};

// `rows` rows of inputs `a`, a multiple of 8 (row stride in elements), times a panel of 16 or 32 weight rows, onto or into
// `out`. The nearest cache holds a quarter of the panel and the sums of some rows, which are written where they belong when
// they are whole.
template <int Tiles>
inline void product(const uint16_t* a, int64_t stride, const __m512i* panel, int count, int rows, float* out, int64_t width, bool onto) {
  constexpr int kTogether = 8, kKept = 128, kNear = kPanel / 4;
  alignas(64) float kept[kKept * 16 * Tiles];
  for (int top = 0; top < rows; top += kKept) {
    for (int start = 0; start < count; start += kNear) {
      const int end = least(start + kNear, count);
      for (int row = top; row < rows && row < top + kKept; row += kTogether) {
        const uint16_t* from = a + row * stride;
        float *near = kept + (row - top) * 16 * Tiles, *far = out + row * width;
        __m512 sums[kTogether][Tiles];
        for (int r = 0; r < kTogether; r++)
          for (int t = 0; t < Tiles; t++)
            sums[r][t] = start > 0 ? _mm512_load_ps(near + (r * Tiles + t) * 16)
                                   : (onto ? _mm512_loadu_ps(far + r * width + t * 16) : _mm512_setzero_ps());
        for (int k = start; k < end; k += 2) {
          __m512bh weights[Tiles];
          for (int t = 0; t < Tiles; t++) weights[t] = (__m512bh)panel[t * (kPanel / 2) + k / 2];
          for (int r = 0; r < kTogether; r++) {
            int32_t two;
            __builtin_memcpy(&two, from + r * stride + k, 4);
            const __m512bh inputs = (__m512bh)_mm512_set1_epi32(two);
            for (int t = 0; t < Tiles; t++) sums[r][t] = _mm512_dpbf16_ps(sums[r][t], inputs, weights[t]);
          }
        }
        for (int r = 0; r < kTogether; r++)
          for (int t = 0; t < Tiles; t++) _mm512_storeu_ps(end < count ? near + (r * Tiles + t) * 16 : far + r * width + t * 16, sums[r][t]);
      }
    }
  }
}
