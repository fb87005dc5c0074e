#include "common.h"
#if defined(__aarch64__)
#define GOSSAMER_ISA neon
#define GOSSAMER_ISA_HEADER "isa_neon.h"
namespace gossamer::neon { constexpr bool kPairs = false; constexpr int kRows = 2; }
#include "steps.inl"
#endif
