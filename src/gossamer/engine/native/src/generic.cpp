// Any processor: the compiler's own vectors.
#include "common.h"
#define GOSSAMER_ISA generic
#define GOSSAMER_ISA_HEADER "isa_generic.h"
namespace gossamer::generic { constexpr bool kPairs = false; constexpr int kRows = 8; }
#include "steps.inl"
