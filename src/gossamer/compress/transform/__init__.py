"""Techniques that change weights and keep the model's function. Importing this registers `rotate` and `smoothquant`."""

from gossamer.compress.transform.rotate import Rotate
from gossamer.compress.transform.smoothquant import SmoothQuant

__all__ = ["Rotate", "SmoothQuant"]
