// What Python and C++ share: plain structs, mirrored field by field in abi.py.
#pragma once
#include <cstdint>

namespace gossamer {

constexpr int kLanes = 16;     // rows of a weight that are computed side by side
constexpr int kMatrices = 3;   // matrices that may share one input (query, key, value)
constexpr int kBuffers = 16;
constexpr int kTables = 2;     // rotary embeddings
constexpr int kMostNorm = 16384;   // values of a norm that is a step of its own
constexpr int kMostHeadDim = 512;

enum MatrixKind : int32_t { kFloat32, kBfloat16, kFloat16, kPacked };

// A weight in tiles of 16 rows. `kPacked`: for every 4 columns of a tile 8 * bits bytes (see unpack in isa_*.h), scales
// and zero points for every scale group of a tile 16 each. Floats: 16 values for a column; bfloat16: for two columns.
// Rows are filled up to tiles, columns to `columns`, a multiple of 4, with what counts as 0.
struct Matrix {
  int32_t kind, rows, columns, bits;
  int32_t step;             // columns that share one scale of the inputs; divides what shares one of the weights
  int32_t steps_per_scale;  // and how many of these share one scale of the weights
  int32_t scale_groups;
  int32_t unused;
  const uint8_t* codes;
  const uint16_t* scales;  // float16
  const int8_t* zeros;     // of signed codes; null on symmetric grids
  const uint16_t* least;   // float16, as the scales: what the lowest code stands for; null where codes count from zeros
};

enum OpKind : int32_t { kEmbed, kLinear, kNorm, kRotateStore, kAttend, kRoute, kExperts, kBlend };
enum Prologue : int32_t { kNothing, kRms, kGated };
enum Activation : int32_t { kSilu, kGelu, kGeluTanh, kRelu, kRelu2, kQuickGelu };
enum Grid : int32_t { kFree, kWhole, kE4m3, kMxfp4, kNvfp4 };  // what inputs are rounded to, see models/inputs.py

// One step of a program. Buffers are named by number. Fields that a kind does not name are ignored.
//   kEmbed        out = rows of matrices[0] at the tokens, times `scale`
//   kLinear       outs[i] (+)= matrices[i] (prologue of in, aux, rounded to `grid`) + biases[i]; `scale`: that grid's, 0
//                 where each row's is found as it comes
//   kNorm         out (+)= norm of in, over each of `heads` parts
//   kRotateStore  in = queries, aux = keys, both rotated; keys and values (outs[0]) into the cache
//   kAttend       out = attention of in over the cache
//   kRoute        out = the `count` most likely experts, then their weights, by the softmax of in over `width` experts;
//                 weights sum to 1 where `accumulate` is set
//   kExperts      out += of each of `count` experts its weight in aux, which kRoute wrote for `heads` of them, times what
//                 its two linear steps in `inner` make of in: the first reads the buffer `outs[0]`, the second writes
//                 to `outs[1]`; they run over the rows that go to the expert
//   kBlend        out += in times the sigmoid of aux's one column
struct Op {
  int32_t kind, in, aux, out;
  int32_t count;  // matrices
  int32_t prologue, activation, accumulate;
  int32_t heads, kv_heads, head_dim, rotated;  // rotated: leading dimensions of a head that are rotated
  int32_t layer, window, table, grid;          // window: 0 for none; table: which cosines
  float eps, scale, softcap;
  int32_t width;  // of `in`
  const float* weight;
  Matrix matrices[kMatrices];
  int32_t outs[kMatrices];
  int32_t grid_bits;  // of whole numbers
  const float* biases[kMatrices];
  const Op* inner;
};

struct Buffer {
  float* data;
  int64_t stride;  // floats from row to row; a multiple of 16
};

// One run of a program over `rows` tokens. The cache of a layer: keys (slots, kv heads, capacity / 16, head_dim, 16),
// values (slots, kv heads, capacity, head_dim), both float16 or both float32.
struct Call {
  int32_t rows;
  int32_t exact;      // 1: 16-bit inputs to packed weights whatever the number of rows; 0: bfloat16 tiles where faster
  int32_t wide;       // 1: inputs of packed weights have 16 bits, 0: 8
  int32_t half_cache;
  int64_t capacity;
  const int64_t* tokens;
  const int32_t* slots;  // (rows): whose cache
  const int32_t* places;  // (rows): where in it this token goes
  const int32_t* until;   // (rows): the last place that it sees
  const float* cosines[kTables];  // (rows, rotated) of each table
  const float* sines[kTables];
  void* const* keys;  // (layers)
  void* const* values;
  Buffer buffers[kBuffers];
};

}  // namespace gossamer
