// Products by AMX: 32 x 32 outputs at a time.
#pragma once

constexpr int kPanel = 1024;
constexpr bool kTilesBeatBytes = true;

// Holds the shape of the tile registers while a program runs on this thread.
struct TileState {
  bool on;
  explicit TileState(bool wanted) : on(wanted) {
    if (!on) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, unused[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    _tile_loadconfig(&shape);
  }
  ~TileState() {
    if (on) _tile_release();
  }
};

template <int Rows, int Tiles>
inline void square(const uint16_t* a, int64_t stride, const __m512i* panel, int count, float* out, int64_t width, bool onto) {
  const int64_t bytes = width * 4;
  if (onto) {
    _tile_loadd(0, out, bytes);
    if (Tiles > 1) _tile_loadd(1, out + 16, bytes);
    if (Rows > 1) _tile_loadd(2, out + 16 * width, bytes);
    if (Rows > 1 && Tiles > 1) _tile_loadd(3, out + 16 * width + 16, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int k = 0; k < count; k += 32) {
    _tile_loadd(4, a + k, stride * 2);
    _tile_loadd(6, panel + k / 2, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (Tiles > 1) {
      _tile_loadd(7, panel + kPanel / 2 + k / 2, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (Rows > 1) {
      _tile_loadd(5, a + 16 * stride + k, stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      if (Tiles > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, bytes);
  if (Tiles > 1) _tile_stored(1, out + 16, bytes);
  if (Rows > 1) _tile_stored(2, out + 16 * width, bytes);
  if (Rows > 1 && Tiles > 1) _tile_stored(3, out + 16 * width + 16, bytes);
}

// `rows` rows of inputs `a`, a multiple of 16 (row stride in elements), times a panel of 16 or 32 weight rows, onto or into
// `out`.
template <int Tiles>
inline void product(const uint16_t* a, int64_t stride, const __m512i* panel, int count, int rows, float* out, int64_t width, bool onto) {
  for (int row = 0; row < rows; row += 32, a += 32 * stride, out += 32 * width) {
    if (row + 16 < rows) square<2, Tiles>(a, stride, panel, count, out, width, onto);
    else square<1, Tiles>(a, stride, panel, count, out, width, onto);
  }
}
