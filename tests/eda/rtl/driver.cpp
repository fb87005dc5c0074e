// Fills the queue, prints its count, and ends with it as the exit status.
#include <cstdio>
#include <memory>

#include "Vtop.h"
#include "steps.h"

int main() {
  const auto top = std::make_unique<Vtop>();
  top->rst = 1;
  step(*top);
  top->rst = 0;
  top->push = 1;
  for (int i = 0; i < 20; ++i) step(*top);
  std::printf("%d\n", top->count);
  return top->count;
}
