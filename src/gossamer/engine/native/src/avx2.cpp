#include "common.h"
#if defined(__x86_64__)
#include <immintrin.h>
#define GOSSAMER_ISA avx2
#define GOSSAMER_ISA_HEADER "isa_avx2.h"
namespace gossamer::avx2 { constexpr bool kPairs = true; constexpr int kRows = 8; }
#include "steps.inl"
#endif
