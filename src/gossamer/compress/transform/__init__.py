"""Techniques that change weights and keep the model's function. Importing this registers them."""

from gossamer.compress.transform.awq_scales import AwqScales
from gossamer.compress.transform.learned_scales import LearnedScales
from gossamer.compress.transform.rotate import Rotate
from gossamer.compress.transform.smoothquant import SmoothQuant
from gossamer.compress.transform.spinquant import SpinQuant

__all__ = ["AwqScales", "LearnedScales", "Rotate", "SmoothQuant", "SpinQuant"]
