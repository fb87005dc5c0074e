// Products of 16 rows and more with both sides as bfloat16, sums in float32. GOSSAMER_TILES names the header that
// multiplies: it defines `product`, the TileState that a thread holds meanwhile, kPanel, the columns for which a panel of 32
// weight rows is kept unpacked in the near cache, and kTilesBeatBytes, whether this is faster than products of 8-bit
// inputs with packed weights.
#pragma once

constexpr bool kTiles = true;

#include GOSSAMER_TILES

inline __m512i brief(__m512 even, __m512 odd) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Columns [begin, begin + count) of a tile of 16 rows as pairs of bfloat16, 16 pairs in 64 bytes; count is even.
template <int B>
void unpacked(const Matrix& w, int tile, int begin, int count, __m512i* panel) {
  const uint8_t* p = w.codes + (int64_t(tile) * (w.columns / 4) + begin / 4) * (8 * B);
  const int width = w.step * w.steps_per_scale;
  for (int c = begin; c < begin + count;) {
    const int64_t group = w.scale_groups == 1 ? 0 : c / width;
    const int end = w.scale_groups == 1 ? begin + count : least(begin + count, int(group + 1) * width);
    const int64_t at = (int64_t(tile) * w.scale_groups + group) * 16;
    const __m512 scale = (__m512)from_half(w.scales + at);
    const __m512 lowest = w.least ? (__m512)from_half(w.least + at) : _mm512_setzero_ps();
    __m512i zero = _mm512_set1_epi32(w.least ? 0 : 1 << (B - 1));
    if (w.zeros) zero = _mm512_add_epi32(zero, _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(w.zeros + at))));
    for (; c < end; c += 4, panel += 2) {
      const __m512i codes = unpack<B>(p), mask = _mm512_set1_epi32(255);
      auto value = [&](int column) {
        const __m512i code = _mm512_and_si512(_mm512_srli_epi32(codes, 8 * column), mask);
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(code, zero)), scale, lowest);
      };
      panel[0] = brief(value(0), value(1));
      panel[1] = brief(value(2), value(3));
    }
  }
}

inline void fill_panel(const Matrix& w, int tile, int begin, int count, __m512i* panel) {
  const int filled = least(count, w.columns - begin);
  for (int i = filled / 2; i < count / 2; i++) panel[i] = _mm512_setzero_si512();
  if (w.kind == kBfloat16) {
    const uint16_t* p = (const uint16_t*)w.codes + (int64_t(tile) * w.columns + begin) * 16;
    for (int i = 0; i < filled / 2; i++) panel[i] = _mm512_loadu_si512(p + 32 * i);
    return;
  }
  if (w.kind == kFloat16) {
    const uint16_t* p = (const uint16_t*)w.codes + (int64_t(tile) * w.columns + begin) * 16;
    for (int i = 0; i < filled / 2; i++) panel[i] = brief((__m512)from_half(p + 32 * i), (__m512)from_half(p + 32 * i + 16));
    return;
  }
  switch (w.bits) {
    case 2: return unpacked<2>(w, tile, begin, filled, panel);
    case 3: return unpacked<3>(w, tile, begin, filled, panel);
    case 4: return unpacked<4>(w, tile, begin, filled, panel);
    case 5: return unpacked<5>(w, tile, begin, filled, panel);
    case 6: return unpacked<6>(w, tile, begin, filled, panel);
    case 7: return unpacked<7>(w, tile, begin, filled, panel);
    default: return unpacked<8>(w, tile, begin, filled, panel);
  }
}

inline void tiled_linear(const Op& op, const Call& call, Pool& pool, int thread, uint8_t* own, Arena common) {
  const int threads = pool.size(), rows = call.rows, padded = (rows + 15) & ~15;
  const int64_t stride = ((op.width + 31) & ~31) + 32;  // an odd number of cache lines apart
  uint16_t* a = common.take<uint16_t>(int64_t(padded) * stride);
  Arena mine{own};
  __m512i* panel = mine.take<__m512i>(kPanel);
  float* values = mine.take<float>((op.width + 15) & ~15);
  int begin, end;
  share(padded, thread, threads, begin, end);
  for (int row = begin; row < end; row++) {
    uint16_t* to = a + row * stride;
    std::memset(to, 0, stride * 2);
    if (row >= rows) continue;
    const float* from = prepared(op, call, row, values).values;
    int i = 0;
    for (; i + 16 <= op.width; i += 16) _mm256_storeu_si256((__m256i*)(to + i), (__m256i)_mm512_cvtneps_pbh((__m512)load(from + i)));
    const __mmask16 rest = __mmask16((1u << (op.width - i)) - 1);
    if (rest) _mm256_mask_storeu_epi16(to + i, rest, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(rest, from + i)));
  }
  pool.barrier();
  for (int m = 0; m < op.count; m++) {
    const Matrix& w = op.matrices[m];
    const Buffer& buffer = call.buffers[op.outs[m]];
    const int tiles = (w.rows + 15) / 16, pairs = (tiles + 1) / 2;
    int first, last;
    share(pairs, thread, threads, first, last);
    for (int begin = 0; begin < w.columns; begin += kPanel) {
      const int count = least(kPanel, (w.columns - begin + 31) & ~31);
      for (int pair = first; pair < last; pair++) {
        const bool both = 2 * pair + 1 < tiles;
        fill_panel(w, 2 * pair, begin, count, panel);
        if (both) fill_panel(w, 2 * pair + 1, begin, count, panel + kPanel / 2);
        const bool onto = begin > 0 || op.accumulate;
        float* out = buffer.data + 32 * pair;
        if (both) product<2>(a + begin, stride, panel, count, padded, out, buffer.stride, onto);
        else product<1>(a + begin, stride, panel, count, padded, out, buffer.stride, onto);
      }
    }
    if (op.biases[m]) {
      for (int row = 0; row < rows; row++)
        for (int tile = 2 * first; tile < 2 * last && tile < tiles; tile++) {
          float* p = buffer.data + row * buffer.stride + 16 * tile;
          store(p, load(p) + load(op.biases[m] + 16 * tile));
        }
    }
  }
}
