"""Techniques that put weights on low-bit grids. Importing this registers `rtn`, `awq`, `gptq`, `qronos` and
`signround`."""

from gossamer.compress.quantize.awq import Awq
from gossamer.compress.quantize.gptq import Gptq
from gossamer.compress.quantize.qronos import Qronos
from gossamer.compress.quantize.quantized import Needs, Quantized
from gossamer.compress.quantize.rtn import RoundToNearest
from gossamer.compress.quantize.signround import SignRound
from gossamer.compress.quantize.statistics import Accumulator, Statistics

__all__ = ["Accumulator", "Awq", "Gptq", "Needs", "Qronos", "Quantized", "RoundToNearest", "SignRound", "Statistics"]
