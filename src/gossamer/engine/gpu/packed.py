"""Weights of few bits in the order in which the GPU's kernels read them: 32-bit words, scales and zero points beside.

A row is cut into **chunks** of columns that share one scale. A chunk is `span` words next to each other: the lowest
bits of these hold the chunk's first `span` columns, the next bits the `span` columns after them, and so on. So every
shift of a run of words meets a run of neighbouring inputs, and no word needs more than one scale.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.models.packed import QuantizedTensor

MOST_CHUNK = 128
"""Columns of the longest chunk."""
LEAST_CHUNK = 32
"""Columns of the shortest chunk of a row with one scale: it is filled up to whole chunks."""
WIDTHS = (2, 4, 8)
"""Bits that a code may take in a word. Codes of other bits take the next of them."""


@dataclass(frozen=True)
class Layout:
    """A matrix (rows, columns) of codes of `bits` bits, `width` bits for each, in chunks of `chunk` columns; `group`
    columns share a scale."""

    rows: int
    columns: int
    bits: int
    width: int
    chunk: int
    group: int

    @classmethod
    def of(cls, rows: int, columns: int, bits: int, group: int | None) -> "Layout":
        """The densest layout. Raises `ValueError` for groups of columns that do not fill whole words."""
        chunk = max(gcd(columns, MOST_CHUNK), LEAST_CHUNK) if group is None else gcd(group, MOST_CHUNK)
        for width in WIDTHS:
            if width >= bits and chunk % (32 // width) == 0:
                return cls(rows, columns, bits, width, chunk, group or columns)
        raise ValueError(f"groups of {group} columns are not packed for a GPU: multiples of 4 are")

    @property
    def span(self) -> int:
        """Words of a chunk."""
        return self.chunk * self.width // 32

    @property
    def chunks(self) -> int:
        """Chunks of a row; where a row has one scale, the last may hold more columns than there are."""
        return -(-self.columns // self.chunk)

    @property
    def chunks_per_scale(self) -> int:
        """Chunks that share a scale."""
        return self.chunks if self.group == self.columns else self.group // self.chunk


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight `scale * (code - zero)`. `words` int32 (rows, chunks * span) hold codes counted from 0; `scales` float16
    (rows, groups); `zeros` uint8 (rows, groups) likewise from 0, None where it is half of the range everywhere."""

    layout: Layout
    words: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    @classmethod
    def pack(cls, tensor: QuantizedTensor) -> "PackedWeight":
        """The matrix view of a weight on a grid of whole numbers. Raises `ValueError` for other grids and groups."""
        scheme = tensor.scheme
        if scheme.format != "int":
            raise ValueError(f"codes of {scheme.format} are not packed for a GPU: whole numbers are")
        rows, columns = tensor.codes.shape
        layout = Layout.of(rows, columns, scheme.bits, scheme.group)
        codes = _from_zero(tensor.codes, scheme.bits)
        codes = pad(codes, (0, layout.chunks * layout.chunk - columns))
        in_byte = 8 // layout.width
        places = codes.reshape(rows, layout.chunks, 4, in_byte, layout.span)
        held = torch.zeros_like(places[:, :, :, 0])
        for place in range(in_byte):
            held |= places[:, :, :, place] << (place * layout.width)
        words = held.transpose(2, 3).reshape(-1).view(torch.int32).reshape(rows, -1)
        zeros = None if tensor.zeros is None else _from_zero(tensor.zeros, scheme.bits)
        return cls(layout, words, tensor.scales.contiguous(), zeros)

    @property
    def bytes(self) -> int:
        """Bytes of words, scales and zero points."""
        return sum(part.nbytes for part in (self.words, self.scales, self.zeros) if part is not None)

    def dense(self) -> Tensor:
        """The weight (rows, columns), float32."""
        layout = self.layout
        rows = len(self.words)
        held = self.words.view(torch.uint8).reshape(rows, layout.chunks, layout.span, 4).transpose(2, 3)
        shifts = range(0, 8, layout.width)
        codes = torch.stack([held >> shift & (1 << layout.width) - 1 for shift in shifts], 3)
        codes = codes.reshape(rows, -1)[:, : layout.columns].float()
        zeros = float(1 << (layout.bits - 1)) if self.zeros is None else self.zeros.float().unsqueeze(-1)
        steps = codes.reshape(rows, self.scales.shape[1], -1) - zeros
        return (steps * self.scales.float().unsqueeze(-1)).reshape(rows, layout.columns)

    def take(self, rows: Tensor) -> "PackedWeight":
        """Some of the rows, by their places (count,)."""
        zeros = None if self.zeros is None else self.zeros[rows]
        return PackedWeight(self.layout, self.words[rows], self.scales[rows], zeros)


def _from_zero(codes: Tensor, bits: int) -> Tensor:
    return (codes.short() + (1 << (bits - 1))).to(torch.uint8)
