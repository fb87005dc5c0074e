"""Techniques that put weights on low-bit grids. Importing this registers `rtn`, `hqq`, `awq`, `gptq`, `gptaq`,
`qronos`, `signround` and `omniquant`, and `activations` beside them."""

from gossamer.compress.quantize.activations import Activations
from gossamer.compress.quantize.awq import Awq
from gossamer.compress.quantize.gptaq import Gptaq
from gossamer.compress.quantize.gptq import Gptq
from gossamer.compress.quantize.hqq import Hqq
from gossamer.compress.quantize.omniquant import OmniQuant
from gossamer.compress.quantize.qronos import Qronos
from gossamer.compress.quantize.rtn import RoundToNearest
from gossamer.compress.quantize.signround import SignRound

__all__ = ["Activations", "Awq", "Gptaq", "Gptq", "Hqq", "OmniQuant", "Qronos", "RoundToNearest", "SignRound"]
