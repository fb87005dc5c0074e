// How a simulation program ends. Weak: a driver may say otherwise, as model.cpp does.
#include <cstdio>
#include <cstdlib>

#include "verilated.h"

// $finish is no news.
__attribute__((weak)) void vl_finish(const char*, int, const char*) { Verilated::threadContextp()->gotFinish(true); }

// $stop, $fatal, a failed assertion, a loop that does not settle.
__attribute__((weak)) void vl_fatal(const char* file, int line, const char*, const char* message) {
  std::printf("%%Error: %s:%d: %s\n", file, line, message);
  std::fflush(nullptr);
  std::_Exit(1);
}
