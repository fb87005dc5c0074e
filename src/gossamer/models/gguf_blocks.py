"""Weights on a grid, repacked in GGUF's block formats: the codes stay what they are, nothing is quantised anew.

A block is 32 neighbouring weights of one row with one 16-bit scale, as the grid's own. The formats of 256 weights
(`Q2_K`, `Q3_K`, `Q6_K`) have a small integer scale for every 16 weights and a 16-bit one above them. They are used
where one scale of the grid serves all 256: the integer is 1 then, and nothing is rounded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.models.packed import QuantizedTensor, brief_dtype

BYTE = torch.uint8


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tensor as GGUF stores it.

    `kind` is ggml's name of its type, `data` its values (F32, F16) or bytes, row by row. `exact` tells whether it holds
    the very values that it was made from.
    """

    kind: str
    data: NDArray[np.generic]
    exact: bool

    def decoded(self) -> Tensor:
        """The values, float32, as the gguf package reads them."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        return torch.from_numpy(np.array(dequantize(self.data, GGMLQuantizationType[self.kind]), dtype=np.float32))


@dataclass(frozen=True)
class _Format:
    """A block format: `size` weights, each `scale * step` with whole steps of `bits` from `low` up.

    `pack` takes the steps above `low` (blocks, size) and the scale's bytes (blocks, 2), and gives the blocks' bytes.
    """

    kind: str
    size: int
    bits: int
    low: int
    pack: Callable[[Tensor, Tensor], Tensor]

    def holds(self, steps: Tensor) -> bool:
        """Whether it can hold these steps (rows, groups, width)."""
        least, greatest = torch.aminmax(steps)
        return steps.shape[-1] % self.size == 0 and int(least) >= self.low and int(greatest) < self.low + 2**self.bits


def encode(tensor: QuantizedTensor) -> Encoded | None:
    """The smallest block format that holds the codes of `tensor`, or None if none does.

    None where a group is no multiple of 32 columns, and where 8-bit codes lie more than 127 steps off their zero point.
    Only `Q4_1` and `Q5_1`, which grids with zero points need at 4 and 5 bits, are not always exact: a group's least
    value is rounded to 16 bits there.
    """
    rows, groups = tensor.scales.shape
    codes = tensor.codes.reshape(rows, groups, -1).to(torch.int16)
    steps = codes if tensor.zeros is None else codes - tensor.zeros.unsqueeze(-1)
    form = next((form for form in _FORMATS if form.holds(steps)), None)
    if tensor.zeros is not None and codes.shape[-1] % 32 == 0:
        shifted = {4: "Q4_1", 5: "Q5_1"}.get(tensor.scheme.bits)
        if shifted is not None and (form is None or form.bits > tensor.scheme.bits):
            return _shifted(shifted, codes, tensor, tensor.zeros)
    if form is None:
        return None
    blocks = form.pack((steps - form.low).to(BYTE).reshape(-1, form.size), _each(tensor.scales, steps, form.size))
    return Encoded(form.kind, blocks.reshape(rows, -1).numpy(), True)


def encode_dense(values: Tensor) -> Encoded:
    """Float values as they are commonly stored: F32 for vectors, 16 bits for matrices (F16, or BF16 where only that
    holds the values or their range)."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values = values.float().contiguous()
    if values.dim() < 2:
        return Encoded("F32", values.numpy(), True)
    if brief_dtype(values) == torch.float16:
        half = values.half()
        return Encoded("F16", half.numpy(), bool((half.float() == values).all()))
    exact = bool((values.bfloat16().float() == values).all())
    return Encoded("BF16", quantize(values.numpy(), GGMLQuantizationType.BF16), exact)


def _shifted(kind: str, codes: Tensor, tensor: QuantizedTensor, zeros: Tensor) -> Encoded:
    """Blocks of `scale * code + least`, codes counted from 0 and the least value a 16-bit float."""
    low, pack = tensor.scheme.low, _four if kind == "Q4_1" else _five
    lowest = (low - zeros.float()) * tensor.scales.float()
    least = lowest.half()
    head = torch.cat([_each(tensor.scales, codes, 32), _each(least, codes, 32)], dim=1)
    blocks = pack((codes - low).to(BYTE).reshape(-1, 32), head)
    return Encoded(kind, blocks.reshape(len(codes), -1).numpy(), bool((least.float() == lowest).all()))


def _each(values: Tensor, steps: Tensor, size: int) -> Tensor:
    """The bytes (blocks, 2) of one float16 value a group, for each of the group's blocks."""
    return values.repeat_interleave(steps.shape[-1] // size, dim=1).reshape(-1, 1).view(BYTE)


def _bits_apart(runs: Tensor, bits: int) -> Tensor:
    """Ors codes of `bits` along the last dimension but one, each shifted to a place of its own in the byte."""
    places = torch.arange(0, bits * runs.shape[-2], bits, dtype=BYTE).unsqueeze(-1)
    return (runs << places).sum(dim=-2, dtype=BYTE)


def _nibbles(codes: Tensor) -> Tensor:
    """Two codes a byte: the first half of a block below, the second above."""
    return _bits_apart(codes.reshape(-1, 2, 16), 4)


def _quarters(codes: Tensor) -> Tensor:
    """Two bits of 256 weights: four runs of 32 share 32 bytes."""
    return _bits_apart(codes.reshape(-1, 2, 4, 32), 2).reshape(-1, 64)


def _same(block: bytes, codes: Tensor) -> Tensor:
    """The same bytes for every block."""
    return torch.tensor(list(block), dtype=BYTE).expand(len(codes), -1)


def _four(codes: Tensor, head: Tensor) -> Tensor:
    return torch.cat([head, _nibbles(codes)], dim=1)


def _five(codes: Tensor, head: Tensor) -> Tensor:
    """The fifth bits lie apart, 32 of them in 4 bytes."""
    fifth = _bits_apart((codes >> 4).reshape(-1, 4, 8, 1), 1).reshape(-1, 4)
    return torch.cat([head, fifth, _nibbles(codes & 15)], dim=1)


def _eight(codes: Tensor, head: Tensor) -> Tensor:
    return torch.cat([head, codes ^ 128], dim=1)


def _two_k(codes: Tensor, head: Tensor) -> Tensor:
    """Every 16 weights are `scale * 1 * code - scale * 2`."""
    return torch.cat([_same(b"\x21" * 16, codes), _quarters(codes), head, head], dim=1)


def _three_k(codes: Tensor, head: Tensor) -> Tensor:
    """The third bits lie apart; all sixteen 6-bit scales are 1, which is stored as 33."""
    third = _bits_apart((codes >> 2).reshape(-1, 8, 32), 1)
    return torch.cat([third, _quarters(codes & 3), _same(b"\x11" * 8 + b"\xaa" * 4, codes), head], dim=1)


def _six_k(codes: Tensor, head: Tensor) -> Tensor:
    """The lower four bits of runs of 64, then the upper two; all sixteen scales are 1."""
    lower = _bits_apart((codes & 15).reshape(-1, 2, 2, 64), 4).reshape(-1, 128)
    return torch.cat([lower, _quarters(codes >> 4), _same(b"\x01" * 16, codes), head], dim=1)


_FORMATS = (
    _Format("Q2_K", 256, 2, -2, _two_k),
    _Format("Q3_K", 256, 3, -4, _three_k),
    _Format("Q4_0", 32, 4, -8, _four),
    _Format("Q5_0", 32, 5, -16, _five),
    _Format("Q6_K", 256, 6, -32, _six_k),
    _Format("Q8_0", 32, 8, -128, _eight),
)
"""From the smallest up."""
