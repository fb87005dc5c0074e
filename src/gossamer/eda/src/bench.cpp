// Runs a test bench to its $finish. Exit status 3 if it runs out of events before.
#include <cstdio>
#include <memory>

#include "Vtop.h"
#include "verilated.h"

int main(int argc, char** argv) {
  const auto context = std::make_unique<VerilatedContext>();
  context->commandArgs(argc, argv);
  const auto top = std::make_unique<Vtop>(context.get(), "");
  while (!context->gotFinish()) {
    top->eval();
    if (context->gotFinish()) break;
    if (!top->eventsPending()) {
      std::printf("%%Error: the test bench ran out of events before $finish\n");
      return 3;
    }
    context->time(top->nextTimeSlot());
  }
  top->final();
  return 0;
}
