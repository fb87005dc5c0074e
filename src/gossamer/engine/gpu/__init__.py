"""What runs a model on a GPU: its weights as they are packed, and the step of a token as one recorded graph."""
