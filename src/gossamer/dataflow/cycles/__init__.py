"""How long each step takes, to the cycle: what the RTL's counters show, by formula."""
