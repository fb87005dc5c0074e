"""How long each step takes in the engine, to the cycle."""
