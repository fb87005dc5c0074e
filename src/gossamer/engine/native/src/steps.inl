// Every step of a program, written once and compiled for each processor: the including file sets the target, defines
// GOSSAMER_ISA, the namespace, and in it kPairs (see quantise) and kRows (see packed_product); one isa_*.h comes through it.

namespace gossamer::GOSSAMER_ISA {

typedef float f32x16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i32x16 __attribute__((vector_size(64), aligned(4)));
typedef uint32_t u32x16 __attribute__((vector_size(64), aligned(4)));

// One row of inputs as whole numbers: value = scale of its step * (256 * high + low), or scale * high where 8 bits do.
struct Quantised {
  int8_t *high, *low;
  int32_t* pairs;  // the same for 16-bit products: columns (0, 2) and (1, 3) of every four
  float* scales;   // one for each step of columns
  int32_t* sums;   // of the whole numbers of a step
};

#include GOSSAMER_ISA_HEADER

inline f32x16 all(float v) { return f32x16{} + v; }
inline f32x16 load(const float* p) { return *(const f32x16*)p; }
inline void store(float* p, f32x16 v) { *(f32x16*)p = v; }
inline int least(int a, int b) { return a < b ? a : b; }
inline f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
// The nearest whole number, ties to the even one, of values up to 2^22.
inline f32x16 nearest(f32x16 v) { return (v + 12582912.0f) - 12582912.0f; }
inline float sum(f32x16 v) {
  float s = 0;
  for (int i = 0; i < 16; i++) s += v[i];
  return s;
}
inline float largest(f32x16 v) {
  float s = v[0];
  for (int i = 1; i < 16; i++) s = v[i] > s ? v[i] : s;
  return s;
}
inline f32x16 from_bfloat(const uint16_t* p) {
  u32x16 out;
  for (int i = 0; i < 16; i++) out[i] = uint32_t(p[i]) << 16;
  return (f32x16)out;
}

// e^v to 2 units of the last place (Cephes' polynomial); 0 below -87, no overflow up to 88.
inline f32x16 exponential(f32x16 v) {
  const f32x16 clamped = v < -87.0f ? all(-87.0f) : (v > 88.0f ? all(88.0f) : v);
  const f32x16 magic = all(12582912.0f);
  const f32x16 n = (clamped * 1.44269504088896341f + magic) - magic;
  const f32x16 r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  f32x16 p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const i32x16 exponent = (__builtin_convertvector(n, i32x16) + 127) << 23;
  const f32x16 out = p * (f32x16)exponent;
  return v < -87.0f ? all(0.0f) : out;
}

inline f32x16 activated(f32x16 v, int kind) {
  switch (kind) {
    case kSilu: return v / (1.0f + exponential(-v));
    case kQuickGelu: return v / (1.0f + exponential(-1.702f * v));
    case kGeluTanh: return v / (1.0f + exponential(-1.5957691216057308f * (v + 0.044715f * v * v * v)));
    case kRelu: return v > 0.0f ? v : all(0.0f);
    case kRelu2: return v > 0.0f ? v * v : all(0.0f);
    default: {
      f32x16 out;
      for (int i = 0; i < 16; i++) out[i] = 0.5f * v[i] * (1.0f + std::erf(v[i] * 0.70710678118654752f));
      return out;
    }
  }
}

// ---------------------------------------------------------------- inputs of a linear step

// The root mean square norm of `width` values.
inline void normed(const Op& op, const float* in, int width, float* out) {
  f32x16 squares{};
  const int whole = width & ~15;
  for (int i = 0; i < whole; i += 16) squares += load(in + i) * load(in + i);
  float square = sum(squares);
  for (int i = whole; i < width; i++) square += in[i] * in[i];
  const float rate = 1.0f / std::sqrt(square / float(width) + op.eps);
  for (int i = 0; i < whole; i += 16) store(out + i, load(in + i) * rate * load(op.weight + i));
  for (int i = whole; i < width; i++) out[i] = in[i] * rate * op.weight[i];
}

// The same numbers for 16-bit products, where those are used.
template <bool Wide>
inline void paired(const Quantised& q, int columns) {
  if (!kPairs) return;
  for (int i = 0; i < columns; i += 4) {
    auto value = [&](int c) { return uint32_t(Wide ? q.high[i + c] * 256 + q.low[i + c] : q.high[i + c]) & 0xffffu; };
    q.pairs[i / 2] = int32_t(value(0) | value(2) << 16);
    q.pairs[i / 2 + 1] = int32_t(value(1) | value(3) << 16);
  }
}

// The nearest numbers of a float format, ties to the even one: E4M3 up to 448, or E2M1 up to 6.
inline f32x16 to_e4m3(f32x16 v) {
  v = v > 448.0f ? all(448.0f) : (v < -448.0f ? all(-448.0f) : v);
  const f32x16 power = (f32x16)((u32x16)v & 0x7f800000u);  // of two, at most the value's size
  const f32x16 step = max(power, all(0.015625f)) * 0.125f;
  return nearest(v / step) * step;
}
inline f32x16 to_e2m1(f32x16 v) {
  v = v > 6.0f ? all(6.0f) : (v < -6.0f ? all(-6.0f) : v);
  const f32x16 size = max(v, -v), step = size < 2.0f ? all(0.5f) : (size < 4.0f ? all(1.0f) : all(2.0f));
  return nearest(v / step) * step;
}

// Rounds `width` inputs to the step's grid, bit by bit as compressed-tensors does, and fills up with zeros to 16. Returns
// the scale of whole numbers. `out` may be `in`.
inline float on_grid(const Op& op, const float* in, float* out) {
  const int width = op.width, filled = (width + 15) & ~15;
  auto part = [&](int i) {
    f32x16 v{};
    if (i + 16 <= width) return load(in + i);
    for (int j = 0; i + j < width; j++) v[j] = in[i + j];
    return v;
  };
  if (op.grid == kMxfp4 || op.grid == kNvfp4) {
    const int group = op.grid == kMxfp4 ? 32 : 16;
    for (int start = 0; start < filled; start += group) {
      const int end = least(start + group, filled);
      f32x16 most{};
      for (int i = start; i < end; i += 16) most = max(most, max(part(i), -part(i)));
      const float top = largest(most);
      float scale;
      if (op.grid == kMxfp4) {  // a quarter of the power of two at or below the largest, of the next from 7/8 of that on
        uint32_t bits;
        std::memcpy(&bits, &top, 4);
        const int exponent = int((bits + (1u << 21)) >> 23) - 2;
        scale = std::ldexp(1.0f, (exponent < 0 ? 0 : exponent) - 127);
      } else {
        const float kept = to_e4m3(all(op.scale * (top / 6.0f)))[0];
        scale = (kept == 0 ? 0.125f : kept) / op.scale;
      }
      for (int i = start; i < end; i += 16) store(out + i, to_e2m1(part(i) / scale) * scale);
    }
    return 0;
  }
  const float span = op.grid == kWhole ? float((1 << op.grid_bits) - 1) * 0.5f : 448.0f;
  float scale = op.scale;
  if (scale == 0) {
    f32x16 most{};
    for (int i = 0; i < filled; i += 16) most = max(most, max(part(i), -part(i)));
    scale = largest(most) / span;
    if (scale == 0) scale = 1.1920929e-7f;
  }
  if (op.grid == kE4m3) {
    for (int i = 0; i < filled; i += 16) store(out + i, to_e4m3(part(i) / scale) * scale);
    return 0;
  }
  const float high = span - 0.5f, low = -high - 1;
  for (int i = 0; i < filled; i += 16) {
    const f32x16 v = part(i) / scale;
    store(out + i, nearest(v > high ? all(high) : (v < low ? all(low) : v)) * scale);
  }
  return scale;
}

// What enters the matrices of a linear step, in `out` or where it lies, and the scale of whole numbers that it is on.
struct Prepared {
  const float* values;
  float scale;
};
inline Prepared prepared(const Op& op, const Call& call, int row, float* out) {
  const float* in = call.buffers[op.in].data + row * call.buffers[op.in].stride;
  if (op.prologue == kRms) {
    normed(op, in, op.width, out);
    for (int i = op.width; i & 15; i++) out[i] = 0;  // what fills up a weight's columns must not meet a NaN
    in = out;
  } else if (op.prologue == kGated) {
    const float* other = call.buffers[op.aux].data + row * call.buffers[op.aux].stride;
    for (int i = 0; i < op.width; i += 16) store(out + i, activated(load(in + i), op.activation) * load(other + i));
    in = out;
  }
  if (op.grid == kFree) return {in, 0};
  const float scale = on_grid(op, in, out);
  return {out, scale};
}

// Whole numbers that have one scale already.
inline void whole(const float* in, float scale, int columns, int step, const Quantised& q) {
  for (int i = 0; i < columns; i += 16) {
    const i32x16 value = __builtin_convertvector(nearest(load(in + i) / scale), i32x16);
    for (int j = 0; j < 16; j++) q.high[i + j] = int8_t(value[j]);
  }
  for (int start = 0, index = 0; start < columns; start += step, index++) {
    int32_t total = 0;
    for (int i = start; i < start + step && i < columns; i++) total += q.high[i];
    q.scales[index] = scale;
    q.sums[index] = total;
  }
  paired<false>(q, columns);
}

template <bool Wide>
inline void quantise(const float* in, int width, int columns, int step, const Quantised& q) {
  constexpr float kTop = Wide ? 32512.0f : 127.0f;  // 127 * 256: the high byte never overflows
  for (int start = 0, index = 0; start < columns; start += step, index++) {
    const int end = start + step < columns ? start + step : columns;
    const int filled = end < width ? end : width;
    f32x16 most{};
    int i = start;
    for (; i + 16 <= filled; i += 16) {
      const f32x16 v = load(in + i);
      most = max(most, max(v, -v));
    }
    float top = largest(most);
    for (; i < filled; i++) top = std::fmax(top, std::fabs(in[i]));
    const float rate = top > 0 ? kTop / top : 0.0f;
    int32_t total = 0;
    i32x16 totals{};
    auto keep = [&](int at, int32_t value) {
      const int32_t high = Wide ? (value + 128) >> 8 : value;
      q.high[at] = int8_t(high);
      if (Wide) q.low[at] = int8_t(value - 256 * high);
    };
    for (i = start; i + 16 <= filled; i += 16) {
      // adding 1.5 * 2^23 rounds to the nearest whole number, ties to even, and leaves it in the low bits
      const i32x16 value = (i32x16)(load(in + i) * rate + 12582912.0f) - 0x4b400000;
      totals += value;
      for (int j = 0; j < 16; j++) keep(i + j, value[j]);
    }
    for (int j = 0; j < 16; j++) total += totals[j];
    for (; i < filled; i++) {
      const int32_t value = int32_t(__builtin_rintf(in[i] * rate));
      total += value;
      keep(i, value);
    }
    for (; i < end; i++) q.high[i] = q.low[i] = 0;
    q.scales[index] = top / kTop;
    q.sums[index] = total;
  }
  paired<Wide>(q, columns);
}

// ---------------------------------------------------------------- one tile of 16 outputs

constexpr int kAhead = 2048;

// Asks for the memory some kilobytes further on: tiles lie one behind the other, and what the processor guesses by itself
// ends at every page.
inline void ahead(const void* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)p + kAhead + i);
}

struct Output {
  float* data;  // at the first row and the tile's first column
  int64_t stride;
  const float* bias;  // at the tile's first column, or null
  bool accumulate;
};

inline void write(const Output& out, int row, f32x16 v) {
  float* p = out.data + row * out.stride;
  if (out.bias) v += load(out.bias);
  if (out.accumulate) v += load(p);
  store(p, v);
}

template <int B, int R, bool Wide>
void packed_tile(const Matrix& w, int tile, const Quantised* x, const Output& out) {
  const uint8_t* p = w.codes + int64_t(tile) * (w.columns / 4) * (8 * B);
  const uint16_t* scales = w.scales + int64_t(tile) * w.scale_groups * 16;
  const int8_t* zeros = w.zeros ? w.zeros + int64_t(tile) * w.scale_groups * 16 : nullptr;
  const uint16_t* lowest = w.least ? w.least + int64_t(tile) * w.scale_groups * 16 : nullptr;
  f32x16 result[R] = {};
  int group = 0, left = w.steps_per_scale;
  f32x16 scale = from_half(scales);
  for (int start = 0, index = 0; start < w.columns; start += w.step, index++) {
    const int end = start + w.step < w.columns ? start + w.step : w.columns;
    if (left == 0) {
      scale = from_half(scales + 16 * ++group);
      left = w.steps_per_scale;
    }
    left--;
    ahead(p, (end - start) / 4 * (8 * B));
    Sum<Wide> first[R], second[R];
    int column = start;
    if constexpr (R == 1) {
      for (; column + 8 <= end; column += 8) {  // two chains: the multiplier's delay is longer than its turn
        const auto a = unpack<B>(p);
        first[0].add(a, x[0], column);
        const auto b = unpack<B>(p);
        second[0].add(b, x[0], column + 4);
      }
    }
    for (; column < end; column += 4) {
      const auto codes = unpack<B>(p);
      for (int r = 0; r < R; r++) first[r].add(codes, x[r], column);
    }
    i32x16 zero = i32x16{} + (lowest ? 0 : 1 << (B - 1));
    if (zeros) {
      for (int i = 0; i < 16; i++) zero[i] += zeros[16 * group + i];
    }
    for (int r = 0; r < R; r++) {
      i32x16 dot = first[r].value();
      if constexpr (R == 1) dot += second[r].value();
      dot -= zero * x[r].sums[index];
      result[r] += __builtin_convertvector(dot, f32x16) * (scale * x[r].scales[index]);
      if (lowest) result[r] += from_half(lowest + 16 * group) * (x[r].scales[index] * float(x[r].sums[index]));
    }
  }
  for (int r = 0; r < R; r++) write(out, r, result[r]);
}

template <int R>
void float_tile(const Matrix& w, int tile, const float* const* x, const Output& out) {
  f32x16 result[R] = {}, other[R] = {};
  const int64_t base = int64_t(tile) * w.columns * 16;
  if (w.kind == kBfloat16) {
    const u32x16* p = (const u32x16*)((const uint16_t*)w.codes + base);
    for (int c = 0; c < w.columns; c += 2, p++) {
      ahead(p, 64);
      const f32x16 even = (f32x16)(*p << 16), odd = (f32x16)(*p & 0xffff0000u);
      for (int r = 0; r < R; r++) {
        result[r] += even * x[r][c];
        other[r] += odd * x[r][c + 1];
      }
    }
  } else {
    for (int c = 0; c < w.columns; c += 2) {
      f32x16 even, odd;
      if (w.kind == kFloat16) {
        even = from_half((const uint16_t*)w.codes + base + 16 * c);
        odd = from_half((const uint16_t*)w.codes + base + 16 * c + 16);
      } else {
        even = load((const float*)w.codes + base + 16 * c);
        odd = load((const float*)w.codes + base + 16 * c + 16);
      }
      for (int r = 0; r < R; r++) {
        result[r] += even * x[r][c];
        other[r] += odd * x[r][c + 1];
      }
    }
  }
  for (int r = 0; r < R; r++) write(out, r, result[r] + other[r]);
}

template <int R, bool Wide>
void packed_rows(const Matrix& w, int tile, const Quantised* x, const Output& out) {
  switch (w.bits) {
    case 2: return packed_tile<2, R, Wide>(w, tile, x, out);
    case 3: return packed_tile<3, R, Wide>(w, tile, x, out);
    case 4: return packed_tile<4, R, Wide>(w, tile, x, out);
    case 5: return packed_tile<5, R, Wide>(w, tile, x, out);
    case 6: return packed_tile<6, R, Wide>(w, tile, x, out);
    case 7: return packed_tile<7, R, Wide>(w, tile, x, out);
    default: return packed_tile<8, R, Wide>(w, tile, x, out);
  }
}

inline Output shifted(const Output& out, int row) { return {out.data + row * out.stride, out.stride, out.bias, out.accumulate}; }

// No more rows at once than kRows, whose sums fit into the registers.
template <bool Wide>
void packed_product(const Matrix& w, int tile, const Quantised* x, int rows, const Output& out) {
  int row = 0;
  if constexpr (kRows >= 8)
    for (; row + 8 <= rows; row += 8) packed_rows<8, Wide>(w, tile, x + row, shifted(out, row));
  if constexpr (kRows >= 4)
    for (; row + 4 <= rows; row += 4) packed_rows<4, Wide>(w, tile, x + row, shifted(out, row));
  for (; row + 2 <= rows; row += 2) packed_rows<2, Wide>(w, tile, x + row, shifted(out, row));
  for (; row < rows; row++) packed_rows<1, Wide>(w, tile, x + row, shifted(out, row));
}

inline void float_product(const Matrix& w, int tile, const float* const* x, int rows, const Output& out) {
  int row = 0;
  for (; row + 8 <= rows; row += 8) float_tile<8>(w, tile, x + row, shifted(out, row));
  for (; row + 4 <= rows; row += 4) float_tile<4>(w, tile, x + row, shifted(out, row));
  for (; row + 2 <= rows; row += 2) float_tile<2>(w, tile, x + row, shifted(out, row));
  for (; row < rows; row++) float_tile<1>(w, tile, x + row, shifted(out, row));
}

// ---------------------------------------------------------------- linear

inline int64_t aligned(int64_t bytes) { return (bytes + 63) & ~int64_t(63); }

// Memory of a thread or of all, handed out piece by piece.
struct Arena {
  uint8_t* at;
  template <class T>
  T* take(int64_t count) {
    T* out = (T*)at;
    at += aligned(count * int64_t(sizeof(T)));
    return out;
  }
};

inline Quantised room(Arena& arena, int columns) {
  const int64_t n = columns + 64;
  return {arena.take<int8_t>(n), arena.take<int8_t>(n), arena.take<int32_t>(kPairs ? n / 2 : 1),
          arena.take<float>(n / 4), arena.take<int32_t>(n / 4)};
}

// The share [begin, end) of `count` pieces that is a thread's.
inline void share(int count, int thread, int threads, int& begin, int& end) {
  begin = int(int64_t(count) * thread / threads);
  end = int(int64_t(count) * (thread + 1) / threads);
}

// ---------------------------------------------------------------- many rows: bfloat16 tiles

#ifdef GOSSAMER_TILES
#include "tiles.h"
#else
constexpr bool kTiles = false, kTilesBeatBytes = false;
struct TileState {
  explicit TileState(bool) {}
};
inline void tiled_linear(const Op&, const Call&, Pool&, int, uint8_t*, Arena) {}
#endif

template <bool Wide>
void linear(const Op& op, const Call& call, Pool& pool, int thread, uint8_t* own, uint8_t* common) {
  const int threads = pool.size(), rows = call.rows;
  bool tiled = kTiles && !call.exact && rows >= 16;
  int largest_columns = 0;
  for (int i = 0; i < op.count; i++) {
    const int kind = op.matrices[i].kind;
    if (kind == kFloat32) tiled = false;  // asked for in full
    if (kind == kPacked && !Wide && !kTilesBeatBytes) tiled = false;
    largest_columns = op.matrices[i].columns > largest_columns ? op.matrices[i].columns : largest_columns;
  }
  // Few rows: every thread prepares them for itself, which costs less than waiting for each other.
  const bool alone = rows < threads || rows == 1;  // see `needed` in engine.cpp
  Arena arena{alone ? own : common};
  int begin = 0, end = rows;
  if (!alone) share(rows, thread, threads, begin, end);
  if constexpr (kTiles) {
    if (tiled) return tiled_linear(op, call, pool, thread, own, arena);
  }
  const int padded = (op.width + 15) & ~15;
  float* values = op.prologue == kNothing && op.grid == kFree ? nullptr : arena.take<float>(int64_t(rows) * padded);
  const float** x = arena.take<const float*>(rows);
  Quantised* q[kMatrices] = {};
  for (int i = 0; i < op.count; i++) {
    if (op.matrices[i].kind != kPacked) continue;
    for (int j = 0; j < i && !q[i]; j++)  // matrices of one step length share the inputs
      if (q[j] && op.matrices[j].step == op.matrices[i].step && op.matrices[j].columns == op.matrices[i].columns) q[i] = q[j];
    if (q[i]) continue;
    q[i] = arena.take<Quantised>(rows);
    Arena rest = arena;
    for (int row = 0; row < rows; row++) {
      const Quantised one = room(rest, largest_columns);
      if (row >= begin && row < end) q[i][row] = one;
    }
    arena = rest;
  }
  for (int row = begin; row < end; row++) {
    const Prepared inputs = prepared(op, call, row, values + int64_t(row) * padded);
    x[row] = inputs.values;
    for (int i = 0; i < op.count; i++) {
      bool done = !q[i];
      for (int j = 0; j < i && !done; j++) done = q[j] == q[i];
      if (done) continue;
      const Matrix& w = op.matrices[i];
      if (op.grid == kWhole) whole(x[row], inputs.scale, w.columns, w.step, q[i][row]);
      else quantise<Wide>(x[row], op.width, w.columns, w.step, q[i][row]);
    }
  }
  if (!alone) pool.barrier();
  for (int i = 0; i < op.count; i++) {
    const Matrix& w = op.matrices[i];
    const Buffer& buffer = call.buffers[op.outs[i]];
    int first, last;
    share((w.rows + 15) / 16, thread, threads, first, last);
    for (int tile = first; tile < last; tile++) {
      const Output out{buffer.data + 16 * tile, buffer.stride, op.biases[i] ? op.biases[i] + 16 * tile : nullptr, op.accumulate != 0};
      if (w.kind == kPacked) packed_product<Wide>(w, tile, q[i], rows, out);
      else float_product(w, tile, x, rows, out);
    }
  }
}

// ---------------------------------------------------------------- the other steps

inline void embed(const Op& op, const Call& call, int begin, int end) {
  const Matrix& w = op.matrices[0];
  for (int row = begin; row < end; row++) {
    const int64_t token = call.tokens[row], tile = token / 16, lane = token % 16;
    float* out = call.buffers[op.out].data + row * call.buffers[op.out].stride;
    for (int c = 0; c < w.columns; c++) {
      float value;
      if (w.kind == kPacked) {
        const int bits = w.bits;
        const uint8_t* p = w.codes + (tile * (w.columns / 4) + c / 4) * 8 * bits;
        const int at = int(lane) * 4 + c % 4;  // its byte among the 64
        int code = 0;
        if (bits == 8) code = p[at];
        if (bits & 4) {
          code = p[at & 31] >> (at & 32 ? 4 : 0) & 15;
          p += 32;
        }
        if (bits & 2) {
          code |= (p[at & 15] >> 2 * (at >> 4) & 3) << (bits & 4);
          p += 16;
        }
        if (bits & 1) code |= (p[at >> 3] >> (at & 7) & 1) << (bits & 6);
        const int64_t group = c / w.step / w.steps_per_scale;
        const int64_t where = (tile * w.scale_groups + group) * 16 + lane;
        if (!w.least) code -= (1 << (bits - 1)) + (w.zeros ? w.zeros[where] : 0);
        value = float(code) * from_half(w.scales + where - lane)[int(lane)];
        if (w.least) value += from_half(w.least + where - lane)[int(lane)];
      } else if (w.kind == kBfloat16) {
        value = from_bfloat((const uint16_t*)w.codes + (tile * w.columns + (c & ~1)) * 16 + (lane * 2 & ~15))[int(lane * 2 & 15) + (c & 1)];
      } else if (w.kind == kFloat16) {
        value = from_half((const uint16_t*)w.codes + (tile * w.columns + c) * 16)[int(lane)];
      } else {
        value = ((const float*)w.codes)[(tile * w.columns + c) * 16 + lane];
      }
      out[c] = value * op.scale;
    }
  }
}

inline void norm(const Op& op, const Call& call, int begin, int end) {
  alignas(64) float result[kMostNorm + 16];
  for (int row = begin; row < end; row++) {
    const float* in = call.buffers[op.in].data + row * call.buffers[op.in].stride;
    float* out = call.buffers[op.out].data + row * call.buffers[op.out].stride;
    for (int head = 0; head < op.heads; head++) {
      normed(op, in + head * op.width, op.width, result);
      for (int i = 0; i < op.width; i++) {
        float* p = out + head * op.width + i;
        *p = op.accumulate ? *p + result[i] : result[i];
      }
    }
  }
}

inline void rotate(float* v, const Op& op, const float* cosines, const float* sines) {
  const int half = op.rotated / 2;
  for (int i = 0; i < half; i++) {
    const float a = v[i], b = v[i + half];
    v[i] = a * cosines[i] - b * sines[i];
    v[i + half] = b * cosines[i + half] + a * sines[i + half];
  }
}

inline void keep_value(const Call& call, void* base, int64_t at, float value) {
  if (call.half_cache) {
    f32x16 v{};
    v[0] = value;
    uint16_t half[16];
    to_half(v, half);
    ((uint16_t*)base)[at] = half[0];
  } else {
    ((float*)base)[at] = value;
  }
}

inline void rotate_store(const Op& op, const Call& call, int begin, int end) {
  const int d = op.head_dim;
  for (int row = begin; row < end; row++) {
    const float* cosines = op.rotated ? call.cosines[op.table] + int64_t(row) * op.rotated : nullptr;
    const float* sines = op.rotated ? call.sines[op.table] + int64_t(row) * op.rotated : nullptr;
    float* q = call.buffers[op.in].data + row * call.buffers[op.in].stride;
    float* k = call.buffers[op.aux].data + row * call.buffers[op.aux].stride;
    const float* v = call.buffers[op.outs[0]].data + row * call.buffers[op.outs[0]].stride;
    for (int head = 0; op.rotated && head < op.heads; head++) rotate(q + head * d, op, cosines, sines);
    for (int head = 0; op.rotated && head < op.kv_heads; head++) rotate(k + head * d, op, cosines, sines);
    const int64_t place = call.places[row];
    for (int head = 0; head < op.kv_heads; head++) {
      const int64_t base = (int64_t(call.slots[row]) * op.kv_heads + head) * call.capacity * d;
      const int64_t keys = base + place / 16 * d * 16 + place % 16, values = base + place * d;
      for (int i = 0; i < d; i++) keep_value(call, call.keys[op.layer], keys + i * 16, k[head * d + i]);
      for (int i = 0; i < d; i++) keep_value(call, call.values[op.layer], values + i, v[head * d + i]);
    }
  }
}

constexpr int kChunk = 64;      // keys that are looked at together: what attention needs beside the cache

template <class T>
inline f32x16 cached(const T* p) {
  if constexpr (sizeof(T) == 2) return from_half((const uint16_t*)p);
  else return load((const float*)p);
}

// R rows of one sequence and one head, by chunks of keys with a running maximum (Milakov and Gimelshein 2018; Dao et
// al. 2022): no more than R * kChunk scores exist at a time.
template <class T, int R>
void attend(const Op& op, const Call& call, int row, int head) {
  const int d = op.head_dim;
  const int64_t base = (int64_t(call.slots[row]) * op.kv_heads + head / (op.heads / op.kv_heads)) * call.capacity * d;
  const T* keys = (const T*)call.keys[op.layer] + base;
  const T* values = (const T*)call.values[op.layer] + base;
  const float* q[R];
  alignas(64) float scores[R][kChunk], out[R][kMostHeadDim];
  float top[R], total[R];
  int from[R], until[R], first = 1 << 30, last = 0;
  for (int r = 0; r < R; r++) {
    q[r] = call.buffers[op.in].data + (row + r) * call.buffers[op.in].stride + head * d;
    top[r] = -INFINITY;
    total[r] = 0;
    until[r] = call.until[row + r];
    from[r] = op.window && call.places[row + r] >= op.window ? call.places[row + r] - op.window + 1 : 0;
    first = from[r] < first ? from[r] : first;
    last = until[r] > last ? until[r] : last;
    for (int i = 0; i < d; i++) out[r][i] = 0;
  }
  for (int start = first & ~(kChunk - 1); start <= last; start += kChunk) {
    const int count = last + 1 - start < kChunk ? last + 1 - start : kChunk;
    for (int block = 0; block < count; block += 16) {
      const T* k = keys + int64_t(start + block) * d;
      f32x16 dot[R] = {};
      for (int i = 0; i < d; i++) {
        const f32x16 key = cached(k + 16 * i);
        for (int r = 0; r < R; r++) dot[r] += key * q[r][i];
      }
      for (int r = 0; r < R; r++) {
        f32x16 s = dot[r] * op.scale;
        if (op.softcap > 0) {
          const f32x16 e = exponential(2.0f * s / op.softcap);
          s = op.softcap * (1.0f - 2.0f / (e + 1.0f));
        }
        i32x16 at;
        for (int i = 0; i < 16; i++) at[i] = start + block + i;
        store(scores[r] + block, (at >= from[r]) & (at <= until[r]) ? s : all(-INFINITY));
      }
    }
    for (int r = 0; r < R; r++) {
      f32x16 best = all(-INFINITY);
      for (int i = 0; i < count; i += 16) best = max(best, load(scores[r] + i));
      const float now = std::fmax(top[r], largest(best));
      if (now == -INFINITY) {
        for (int i = 0; i < kChunk; i++) scores[r][i] = 0;
        continue;
      }
      const float rate = top[r] == -INFINITY ? 0.0f : exponential(all(top[r] - now))[0];
      top[r] = now;
      f32x16 mass{};
      for (int i = 0; i < count; i += 16) {
        const f32x16 e = exponential(load(scores[r] + i) - now);
        store(scores[r] + i, e);
        mass += e;
      }
      total[r] = total[r] * rate + sum(mass);
      if (rate != 1.0f)
        for (int i = 0; i < d; i++) out[r][i] *= rate;
    }
    int i = 0;
    for (; i + 32 <= d; i += 32) {
      f32x16 a[R], b[R];
      for (int r = 0; r < R; r++) a[r] = load(out[r] + i), b[r] = load(out[r] + i + 16);
      for (int t = 0; t < count; t++) {
        const T* v = values + int64_t(start + t) * d + i;
        const f32x16 left = cached(v), right = cached(v + 16);
        for (int r = 0; r < R; r++) a[r] += left * scores[r][t], b[r] += right * scores[r][t];
      }
      for (int r = 0; r < R; r++) store(out[r] + i, a[r]), store(out[r] + i + 16, b[r]);
    }
    for (; i + 16 <= d; i += 16)
      for (int t = 0; t < count; t++) {
        const f32x16 v = cached(values + int64_t(start + t) * d + i);
        for (int r = 0; r < R; r++) store(out[r] + i, load(out[r] + i) + v * scores[r][t]);
      }
    for (; i < d; i++)
      for (int t = 0; t < count; t++) {
        float v;
        if constexpr (sizeof(T) == 2) {
          uint16_t half[16] = {((const uint16_t*)values)[int64_t(start + t) * d + i]};
          v = from_half(half)[0];
        } else {
          v = values[int64_t(start + t) * d + i];
        }
        for (int r = 0; r < R; r++) out[r][i] += v * scores[r][t];
      }
  }
  for (int r = 0; r < R; r++) {
    float* result = call.buffers[op.out].data + (row + r) * call.buffers[op.out].stride + head * d;
    for (int i = 0; i < d; i++) result[i] = out[r][i] / total[r];
  }
}

template <class T>
void attention(const Op& op, const Call& call, int thread, int threads) {
  int piece = 0;
  for (int row = 0; row < call.rows;) {
    int together = 1;  // rows of one sequence that follow each other share the reading of its cache
    while (together < 4 && row + together < call.rows && call.slots[row + together] == call.slots[row] &&
           call.places[row + together] == call.places[row] + together)
      together++;
    if (together < 4) together = 1;
    for (int head = 0; head < op.heads; head++, piece++) {
      if (piece % threads != thread) continue;
      if (together == 4) attend<T, 4>(op, call, row, head);
      else attend<T, 1>(op, call, row, head);
    }
    row += together;
  }
}

// ---------------------------------------------------------------- mixtures of experts

// Of equal experts the first is taken, as by torch. The logits in `in` are used up.
inline void route(const Op& op, const Call& call, int begin, int end) {
  for (int row = begin; row < end; row++) {
    float* in = call.buffers[op.in].data + row * call.buffers[op.in].stride;
    float* out = call.buffers[op.out].data + row * call.buffers[op.out].stride;
    float top = in[0], total = 0, kept = 0;
    for (int i = 1; i < op.width; i++) top = std::fmax(top, in[i]);
    for (int i = 0; i < op.width; i++) total += in[i] = std::exp(in[i] - top);
    for (int k = 0; k < op.count; k++) {
      int best = 0;
      for (int i = 1; i < op.width; i++) best = in[i] > in[best] ? i : best;
      out[k] = float(best);
      out[op.count + k] = in[best] / total;
      kept += out[op.count + k];
      in[best] = -1;
    }
    for (int k = 0; op.accumulate && k < op.count; k++) out[op.count + k] /= kept;
  }
}

template <bool Wide>
void linear_of(const Op& op, const Call& call, Pool& pool, int thread, uint8_t* own, uint8_t* common) {
  if (Wide && op.grid != kWhole) linear<true>(op, call, pool, thread, own, common);
  else linear<false>(op, call, pool, thread, own, common);
  pool.barrier();
}

// One expert after another, each over the rows that were sent to it, by all threads together.
template <bool Wide>
void experts(const Op& op, const Call& call, Pool& pool, int thread, uint8_t* own, uint8_t* common) {
  const Buffer &in = call.buffers[op.in], &chosen = call.buffers[op.aux], &out = call.buffers[op.out];
  const Buffer &gathered = call.buffers[op.outs[0]], &made = call.buffers[op.outs[1]];
  Arena arena{own};
  int32_t* rows = arena.take<int32_t>(call.rows);
  float* weights = arena.take<float>(call.rows);
  Call part = call;
  for (int expert = 0; expert < op.count; expert++) {
    int count = 0, begin, end;
    for (int row = 0; row < call.rows; row++) {
      const float* pairs = chosen.data + row * chosen.stride;
      int k = 0;
      while (k < op.heads && int(pairs[k]) != expert) k++;
      if (k == op.heads) continue;
      rows[count] = row;  // once, even where logits that are no numbers chose it again and again
      weights[count++] = pairs[op.heads + k];
    }
    if (count == 0) continue;
    share(count, thread, pool.size(), begin, end);
    for (int i = begin; i < end; i++) std::memcpy(gathered.data + i * gathered.stride, in.data + rows[i] * in.stride, op.width * sizeof(float));
    pool.barrier();
    part.rows = count;
    for (int step = 0; step < 2; step++) linear_of<Wide>(op.inner[2 * expert + step], part, pool, thread, arena.at, common);
    for (int i = begin; i < end; i++) {
      float* to = out.data + rows[i] * out.stride;
      const float* from = made.data + i * made.stride;
      for (int c = 0; c < op.width; c++) to[c] += weights[i] * from[c];
    }
  }
}

inline void blend(const Op& op, const Call& call, int begin, int end) {
  for (int row = begin; row < end; row++) {
    const float* in = call.buffers[op.in].data + row * call.buffers[op.in].stride;
    float* out = call.buffers[op.out].data + row * call.buffers[op.out].stride;
    const float rate = 1.0f / (1.0f + std::exp(-call.buffers[op.aux].data[row * call.buffers[op.aux].stride]));
    for (int i = 0; i < op.width; i++) out[i] += rate * in[i];
  }
}

// Reads a thread's share of the memory, once, and returns a sum of it.
float sweep(const uint8_t* memory, int64_t bytes, int thread, int threads) {
  const int64_t blocks = bytes / 256, begin = blocks * thread / threads, end = blocks * (thread + 1) / threads;
  u32x16 a{}, b{}, c{}, d{};
  for (const u32x16* p = (const u32x16*)memory + 4 * begin; p < (const u32x16*)memory + 4 * end; p += 4) {
    a += p[0];
    b += p[1];
    c += p[2];
    d += p[3];
  }
  return sum(__builtin_convertvector(a + b + c + d, f32x16));
}

void run(const Op* ops, int count, const Call& call, Pool& pool, int thread, uint8_t* memory, int64_t common, int64_t each) {
  const int threads = pool.size();
  uint8_t* own = memory + common + thread * each;
  const TileState tiles(call.rows >= 16 && !call.exact);
  for (int i = 0; i < count; i++) {
    const Op& op = ops[i];
    int begin, end;
    share(call.rows, thread, threads, begin, end);
    switch (op.kind) {
      case kEmbed: embed(op, call, begin, end); break;
      case kLinear:
        if (call.wide) linear_of<true>(op, call, pool, thread, own, memory);
        else linear_of<false>(op, call, pool, thread, own, memory);
        continue;  // it has waited for all
      case kExperts:
        if (call.wide) experts<true>(op, call, pool, thread, own, memory);
        else experts<false>(op, call, pool, thread, own, memory);
        break;
      case kRoute: route(op, call, begin, end); break;
      case kBlend: blend(op, call, begin, end); break;
      case kNorm: norm(op, call, begin, end); break;
      case kRotateStore: rotate_store(op, call, begin, end); break;
      default:
        if (call.half_cache) attention<uint16_t>(op, call, thread, threads);
        else attention<float>(op, call, thread, threads);
    }
    pool.barrier();
  }
}

}  // namespace gossamer::GOSSAMER_ISA
