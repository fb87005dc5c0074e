"""How long each step takes in the engine, and a whole program, to the cycle: what the RTL's counters show."""
