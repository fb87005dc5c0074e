// Runs a program on the best processor code at hand. The functions that Python calls.
#include "common.h"

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <memory>
#include <string>

namespace gossamer {

using Sweep = float(const uint8_t*, int64_t, int, int);
using Run = void(const Op*, int, const Call&, Pool&, int, uint8_t*, int64_t, int64_t);
#define GOSSAMER_DECLARE(isa) \
  namespace isa {             \
  Run run;                    \
  Sweep sweep;                \
  }
GOSSAMER_DECLARE(generic)
#if defined(__x86_64__)
GOSSAMER_DECLARE(avx2)
GOSSAMER_DECLARE(avx512)
GOSSAMER_DECLARE(bf16)
GOSSAMER_DECLARE(amx)
#elif defined(__aarch64__)
GOSSAMER_DECLARE(neon)
#endif

struct Isa {
  const char* name;
  Run* run;
  Sweep* sweep;
};

// From the best to what always runs.
std::vector<Isa> found() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool second = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool vnni = second && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  const bool brief = vnni && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
#if defined(__linux__)
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  asm("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  const bool tiles = (edx >> 24 & 1) && (edx >> 22 & 1);
  constexpr long kAskForTiles = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (brief && tiles && syscall(SYS_arch_prctl, kAskForTiles, kTileData) == 0)
    isas.push_back({"amx", amx::run, amx::sweep});
#endif
  if (brief) isas.push_back({"bf16", bf16::run, bf16::sweep});
  if (vnni) isas.push_back({"avx512", avx512::run, avx512::sweep});
  if (second) isas.push_back({"avx2", avx2::run, avx2::sweep});
#elif defined(__aarch64__)
#if defined(__linux__)
  const bool dot = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
  const bool dot = true;  // in all of Apple's own processors for computers
#else
  const bool dot = false;
#endif
  if (dot) isas.push_back({"neon", neon::run, neon::sweep});
#endif
  isas.push_back({"generic", generic::run, generic::sweep});
  return isas;
}

struct Engine {
  Isa isa;
  Pool pool;
  std::unique_ptr<uint8_t, void (*)(void*)> memory{nullptr, std::free};
  int64_t bytes = 0;
  Engine(Isa isa, int threads) : isa(isa), pool(threads) {}
};

// An upper bound of what a step keeps beside its buffers, for so many rows.
int64_t needed(const Op* ops, int count, int64_t rows) {
  int64_t most = 0;
  for (int i = 0; i < count; i++) {
    if (ops[i].kind == kExperts) most = std::max(most, needed(ops[i].inner, 2 * ops[i].count, rows) + rows * 8);
    if (ops[i].kind != kLinear) continue;
    const int64_t width = ops[i].width + 256;
    most = std::max(most, rows * (width * (4 + kMatrices * 6) + kMatrices * 512 + 64));
  }
  return ((most + (1 << 18)) + 63) & ~int64_t(63);
}

}  // namespace gossamer

using namespace gossamer;

extern "C" {

// The processor codes that run here, best first, separated by spaces.
const char* gossamer_isas() {
  static const std::string names = [] {
    std::string all;
    for (const Isa& isa : found()) all += (all.empty() ? "" : " ") + std::string(isa.name);
    return all;
  }();
  return names.c_str();
}

// Sizes of the structs, so that the mirror in Python can be checked.
void gossamer_sizes(int64_t* out) {
  out[0] = sizeof(Matrix);
  out[1] = sizeof(Op);
  out[2] = sizeof(Call);
}

void* gossamer_new(const char* name, int threads) {
  for (const Isa& isa : found())
    if (std::string(isa.name) == name) return new Engine(isa, threads);
  return nullptr;
}

void gossamer_delete(void* engine) { delete (Engine*)engine; }

// Reads memory once on all threads, as weights are read; what it returns has no meaning.
float gossamer_sweep(void* handle, const uint8_t* memory, int64_t bytes) {
  Engine& engine = *(Engine*)handle;
  std::vector<float> sums(engine.pool.size());
  engine.pool.run([&](int thread) { sums[thread] = engine.isa.sweep(memory, bytes, thread, engine.pool.size()); });
  float all = 0;
  for (float each : sums) all += each;
  return all;
}

// 0, or 1 where there is not memory enough, or 2 for a token that the embedding has no row for.
int gossamer_run(void* handle, const Op* ops, int count, const Call* call) {
  Engine& engine = *(Engine*)handle;
  for (int i = 0; i < count; i++)
    for (int row = 0; ops[i].kind == kEmbed && row < call->rows; row++)
      if (call->tokens[row] < 0 || call->tokens[row] >= ops[i].matrices[0].rows) return 2;
  const int threads = engine.pool.size();
  const int64_t common = needed(ops, count, (call->rows + 31) & ~31), each = needed(ops, count, std::min(call->rows, threads));
  if (common + threads * each > engine.bytes) {
    engine.bytes = common + threads * each;
    engine.memory.reset((uint8_t*)std::aligned_alloc(64, engine.bytes));
    if (!engine.memory) {
      engine.bytes = 0;
      return 1;
    }
  }
  engine.pool.run([&](int thread) { engine.isa.run(ops, count, *call, engine.pool, thread, engine.memory.get(), common, each); });
  return 0;
}

}  // extern "C"
