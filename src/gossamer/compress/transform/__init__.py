"""Techniques that change weights and keep the model's function. Importing this registers them."""

from gossamer.compress.transform.awq_scales import AwqScales
from gossamer.compress.transform.rotate import Rotate
from gossamer.compress.transform.smoothquant import SmoothQuant

__all__ = ["AwqScales", "Rotate", "SmoothQuant"]
