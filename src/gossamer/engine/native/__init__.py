"""A decoder in C++ that computes with packed weights: built on the machine it runs on, the torch code its oracle."""
