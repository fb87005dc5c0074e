"""Techniques that put weights on low-bit grids. Importing this registers `rtn`, `awq`, `gptq`, `qronos` and
`signround`."""

from gossamer.compress.quantize.awq import Awq
from gossamer.compress.quantize.gptq import Gptq
from gossamer.compress.quantize.qronos import Qronos
from gossamer.compress.quantize.rtn import RoundToNearest
from gossamer.compress.quantize.signround import SignRound

__all__ = ["Awq", "Gptq", "Qronos", "RoundToNearest", "SignRound"]
