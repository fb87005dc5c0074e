// A design as a library that Python drives through ctypes: see model.py. Values cross as little-endian bytes in rows of
// 8 bytes (ports of up to 64 bits) or of as many 32-bit words as the port has.
#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "Vtop.h"
#include "verilated.h"

void vl_fatal(const char* file, int line, const char*, const char* message) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + message);
}

namespace {

struct Port {
  char* data;
  size_t bytes;
  size_t stride;
  uint64_t mask;  // of ports of up to 64 bits
  uint32_t top;   // mask of the last word of wider ones
};

struct Model {
  VerilatedContext context;
  std::unique_ptr<Vtop> top;
  std::unique_ptr<Port[]> ports;
  std::string error;
};

Port port(void* data, size_t bytes, int width) {
  const bool wide = width > 64;
  return {static_cast<char*>(data), bytes, wide ? bytes : 8, width < 64 ? (uint64_t{1} << width) - 1 : ~uint64_t{0},
          width % 32 ? (uint32_t{1} << width % 32) - 1 : ~uint32_t{0}};
}

void put(const Port& port, const char* row) {
  if (port.stride == 8) {
    uint64_t value;
    std::memcpy(&value, row, 8);
    value &= port.mask;
    std::memcpy(port.data, &value, port.bytes);
  } else {
    std::memcpy(port.data, row, port.bytes);
    uint32_t last;
    std::memcpy(&last, row + port.bytes - 4, 4);
    last &= port.top;
    std::memcpy(port.data + port.bytes - 4, &last, 4);
  }
}

void take(const Port& port, char* row) {
  std::memset(row, 0, port.stride);
  std::memcpy(row, port.data, port.bytes);
}

void step(Model* model, const Port& clock, char level) {
  *clock.data = level;
  model->context.timeInc(1);
  model->top->eval();
}

template <typename Work> int guarded(Model* model, Work work) {
  try {
    if (model->error.empty()) work();
    return !model->error.empty();
  } catch (const std::exception& error) {
    model->error = error.what();
    return 1;
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Registers that are not reset start at 0, or at random bits from a seed other than 0. `$readmemh` finds files in
// `folder`, which is the process's own for as long as the first evaluation takes.
Model* gossamer_new(int seed, const char* folder) {
  auto* model = new Model;
  if (seed) {
    model->context.randReset(2);
    model->context.randSeed(seed);
  }
  model->top = std::make_unique<Vtop>(&model->context, "");
#define PORT(member, width) port(&model->top->member, sizeof(model->top->member), width),
  model->ports.reset(new Port[]{
#include "ports.inc"
      {}});
#undef PORT
  const int here = open(".", O_RDONLY | O_DIRECTORY);
  if (chdir(folder) == 0) guarded(model, [=] { model->top->eval(); });
  if (here >= 0) {
    if (fchdir(here) != 0) model->error = "the working folder is gone";
    close(here);
  }
  return model;
}

void gossamer_free(Model* model) {
  model->top->final();
  delete model;
}

// Empty if nothing went wrong.
const char* gossamer_error(Model* model) { return model->error.c_str(); }

void gossamer_set(Model* model, int index, const char* row) { put(model->ports[index], row); }

void gossamer_get(Model* model, int index, char* row) { take(model->ports[index], row); }

int gossamer_eval(Model* model) {
  return guarded(model, [=] { model->top->eval(); });
}

int gossamer_clock(Model* model, int clock, int64_t cycles) {
  return guarded(model, [=] {
    for (int64_t cycle = 0; cycle < cycles; ++cycle) {
      step(model, model->ports[clock], 1);
      step(model, model->ports[clock], 0);
    }
  });
}

// Each row: inputs are set, everything settles, outputs are taken, then comes a clock cycle (none if clock < 0).
int gossamer_run(Model* model, int clock, int64_t rows, int inputs, const int* in, const char* const* in_columns,
                 int outputs, const int* out, char* const* out_columns) {
  return guarded(model, [=] {
    for (int64_t row = 0; row < rows; ++row) {
      for (int i = 0; i < inputs; ++i) {
        const Port& port = model->ports[in[i]];
        put(port, in_columns[i] + row * port.stride);
      }
      model->top->eval();
      for (int i = 0; i < outputs; ++i) {
        const Port& port = model->ports[out[i]];
        take(port, out_columns[i] + row * port.stride);
      }
      if (clock < 0) continue;
      step(model, model->ports[clock], 1);
      step(model, model->ports[clock], 0);
    }
  });
}

}  // extern "C"
#pragma GCC visibility pop
