"""The codes in a GGUF file, read as they are stored, where a block of 32 weights has one scale.

`Q4_0`, `Q5_0` and `Q8_0` hold `scale * (code - middle)`, `Q4_1` and `Q5_1` `scale * code + least` (ggml's formats). The
formats of 256 weights, whose scales have scales, are left to those who unpack them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.models.gguf import parameter_names, read_gguf
from gossamer.models.packed import QuantizedTensor, Scheme

if TYPE_CHECKING:
    from torch import nn

BLOCK = 32
_ROWS = 256
"""So many of a matrix are compared, spread over all of it."""
_BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}


@dataclass(frozen=True, eq=False)
class ShiftedTensor:
    """A weight whose groups begin where they like: `scale * (code - low) + least`, `low` being the lowest code.

    `codes` are the codes and scales on a symmetric grid, `least` float16 (rows, groups).
    """

    codes: QuantizedTensor
    least: Tensor

    def dequantize(self) -> Tensor:
        """The weight, float32, of the codes' shape."""
        steps = self.codes.steps() - self.codes.scheme.low
        scales, least = (each.float().unsqueeze(-1) for each in (self.codes.scales, self.least))
        return (steps * scales + least).reshape(self.codes.shape)


Codes = QuantizedTensor | ShiftedTensor


def gguf_codes(path: Path, model: "nn.Module") -> dict[str, Codes]:
    """Parameter → its codes, for every matrix of the file in one of these formats that has the values which `model`,
    opened from the file, has there, as far as `_ROWS` rows tell: others (stacks, parts of a merged layer) are left out.

    Raises what `read_gguf` does.
    """
    from gguf import GGUFReader

    known = parameter_names(read_gguf(path).architecture, model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    same: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        same.setdefault(parameter.data_ptr(), []).append(name)
    found: dict[str, Codes] = {}
    for stored in GGUFReader(str(path)).tensors:
        name, kind = known.get(stored.name, ""), stored.tensor_type.name
        if name not in parameters or kind not in _BITS or parameters[name].dim() != 2:
            continue
        dense = parameters[name].detach()
        rows, columns = dense.shape
        if stored.data.shape[0] != rows:
            continue
        for codes in _in_orders(decoded(np.array(stored.data), kind, (rows, columns)), model.config):
            some = torch.arange(0, rows, -(-rows // _ROWS))
            if torch.equal(_ordered(codes, some).dequantize(), dense[some].float()):
                found |= dict.fromkeys(same[dense.data_ptr()], codes)
                break
    return found


def decoded(data: NDArray[np.uint8], kind: str, shape: tuple[int, int]) -> Codes:
    """The codes in the bytes (rows, bytes of a row) of a tensor of one of these formats."""
    rows, columns = shape
    blocks = torch.from_numpy(data).reshape(rows, columns // BLOCK, -1)
    bits, shifted = _BITS[kind], kind.endswith("_1")
    scales, at = _halves(blocks, 0), 2
    least = _halves(blocks, 2) if shifted else None
    at += 2 * shifted
    if bits == 8:
        codes = blocks[..., at:].contiguous().view(torch.int8)
    else:
        high = blocks[..., at : at + 4] if bits == 5 else None
        nibbles = blocks[..., at + (0 if high is None else 4) :]
        codes = torch.cat([nibbles & 15, nibbles >> 4], -1)
        if high is not None:
            fifth = (high.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
            codes = codes | (fifth.reshape(*codes.shape) << 4)
        codes = (codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    scheme = Scheme(bits, BLOCK)
    nothing = scales == 0  # a block of one value: any scale says so with the code that stands for none of it
    codes = codes.masked_fill(nothing.unsqueeze(-1), scheme.low if shifted else 0)
    tensor = QuantizedTensor(scheme, shape, codes.reshape(shape), scales.masked_fill(nothing, 1.0))
    return tensor if least is None else ShiftedTensor(tensor, least)


def _halves(blocks: Tensor, at: int) -> Tensor:
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0]


def _in_orders(codes: Codes, config: Any) -> Iterator[Codes]:
    """The rows as stored, and as they are once the halves of each head, which llama.cpp rotates in pairs, are apart
    again: of queries, and of keys."""
    yield codes
    text = config.get_text_config(decoder=True)
    rows = (codes.codes if isinstance(codes, ShiftedTensor) else codes).shape[0]
    for heads in {getattr(text, "num_attention_heads", 0), getattr(text, "num_key_value_heads", 0) or 0}:
        if heads and rows % (2 * heads) == 0:
            order = torch.arange(rows).reshape(heads, rows // heads // 2, 2).transpose(1, 2).flatten()
            yield _ordered(codes, order)


def _ordered(codes: Codes, order: Tensor) -> Codes:
    """These rows, in this order."""
    if isinstance(codes, ShiftedTensor):
        tensor = _ordered(codes.codes, order)
        assert isinstance(tensor, QuantizedTensor)
        return ShiftedTensor(tensor, codes.least[order])
    shape = (len(order), *codes.shape[1:])
    return QuantizedTensor(codes.scheme, shape, codes.codes[order], codes.scales[order])
