#include "common.h"
#if defined(__x86_64__)
#include <immintrin.h>
#define GOSSAMER_TILES "tiles_bf16.h"
#define GOSSAMER_ISA bf16
#define GOSSAMER_ISA_HEADER "isa_avx512.h"
namespace gossamer::bf16 { constexpr bool kPairs = false; constexpr int kRows = 8; }
#include "steps.inl"
#endif
