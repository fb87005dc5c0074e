#pragma once

inline void step(Vtop& top) {
  top.clk = 1;
  top.eval();
  top.clk = 0;
  top.eval();
}
