// Runs one program of the native engine on memory that another machine has packed up (see emulated.py).
#include <cstdio>
#include <vector>

#include "abi.h"

using namespace gossamer;

extern "C" {
void* gossamer_new(const char* name, int threads);
int gossamer_run(void* handle, const Op* ops, int count, const Call* call);
}

static std::vector<uint8_t> memory;

// Pointers come as places in the memory, from 1 on; 0 is null.
template <class T>
void point(T*& pointer) {
  if (pointer) pointer = (T*)(memory.data() + (int64_t)pointer - 1);
}

void point_all(Op* ops, int count) {
  for (Op* op = ops; op < ops + count; op++) {
    point(op->weight);
    for (const float*& bias : op->biases) point(bias);
    for (Matrix& w : op->matrices) point(w.codes), point(w.scales), point(w.zeros), point(w.least);
    point(op->inner);
    if (op->inner) point_all((Op*)op->inner, 2 * op->count);
  }
}

int main(int, char** arguments) {  // which code, threads, file
  int64_t sizes[3];                // steps, layers, bytes of memory
  FILE* file = fopen(arguments[3], "r+b");
  if (!file || fread(sizes, 8, 3, file) != 3) return 10;
  std::vector<Op> ops(sizes[0]);
  Call call;
  memory.resize(sizes[2]);
  if (fread(ops.data(), sizeof(Op), ops.size(), file) != ops.size() || fread(&call, sizeof(Call), 1, file) != 1) return 11;
  const long start = ftell(file);
  if (fread(memory.data(), 1, memory.size(), file) != memory.size()) return 12;
  point_all(ops.data(), int(ops.size()));
  point(call.tokens), point(call.slots), point(call.places), point(call.until);
  for (int i = 0; i < kTables; i++) point(call.cosines[i]), point(call.sines[i]);
  for (Buffer& buffer : call.buffers) point(buffer.data);
  std::vector<void*> caches[2];
  for (int side = 0; side < 2; side++) {
    void* const*& pointers = side ? call.values : call.keys;
    point(pointers);
    if (!pointers) continue;
    caches[side].assign(pointers, pointers + sizes[1]);
    for (void*& cache : caches[side]) point(cache);
    pointers = caches[side].data();
  }
  void* engine = gossamer_new(arguments[1], arguments[2][0] - '0');
  if (!engine) return 13;
  const int failed = gossamer_run(engine, ops.data(), int(ops.size()), &call);
  if (failed) return failed;
  fseek(file, start, SEEK_SET);
  return fwrite(memory.data(), 1, memory.size(), file) == memory.size() && !fclose(file) ? 0 : 14;
}
