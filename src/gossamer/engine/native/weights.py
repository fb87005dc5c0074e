"""Weights in the order in which the kernels read them: tiles of 16 rows, 4 columns of all of them side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.engine.native import abi
from gossamer.models.gguf_codes import Codes, ShiftedTensor


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix for the kernels: the struct, and the tensors that its pointers point into."""

    struct: abi.Matrix
    held: Sequence[Tensor] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Bytes that a product reads, filling included."""
        return sum(tensor.nbytes for tensor in self.held)


def packed_weight(codes: Codes) -> Weight:
    """A weight on a grid of whole numbers at exactly its bits, scales and zero points or least values beside.

    The matrix view (rows, columns) counts. Raises `ValueError` for codes of floats, which the kernels do not read.
    """
    tensor = codes.codes if isinstance(codes, ShiftedTensor) else codes
    scheme = tensor.scheme
    if scheme.format != "int":
        raise ValueError(f"the kernels read whole numbers, not {scheme.format}")
    rows, columns = tensor.codes.shape
    filled = pad(tensor.codes, (0, -columns % 4, 0, -rows % abi.LANES))
    planes = _planes((filled.short() + (1 << (scheme.bits - 1))).to(torch.uint8), scheme.bits)
    group = scheme.group or columns
    step = _step(group) if scheme.group else abi.MOST_STEP
    held = [planes, _by_tile(tensor.scales)]
    if tensor.zeros is not None:
        held.append(_by_tile(tensor.zeros))
    if isinstance(codes, ShiftedTensor):
        held.append(_by_tile(codes.least))
    struct = abi.Matrix(
        kind=abi.MatrixKind.PACKED,
        rows=rows,
        columns=filled.shape[1],
        bits=scheme.bits,
        step=step,
        steps_per_scale=group // step if scheme.group else 1 << 30,
        scale_groups=tensor.scales.shape[1],
        codes=held[0].data_ptr(),
        scales=held[1].data_ptr(),
        zeros=held[2].data_ptr() if tensor.zeros is not None else None,
        least=held[2].data_ptr() if isinstance(codes, ShiftedTensor) else None,
    )
    return Weight(struct, held)


def float_weight(weight: Tensor, dtype: torch.dtype) -> Weight:
    """A weight (rows, columns) as `dtype`: float32, float16 or bfloat16, rounded to it."""
    rows, columns = weight.shape
    tiled = pad(weight.to(dtype), (0, -columns % 4, 0, -rows % abi.LANES))
    tiles, width = tiled.shape[0] // abi.LANES, tiled.shape[1]
    if dtype == torch.bfloat16:
        held = tiled.reshape(tiles, abi.LANES, width // 2, 2).transpose(1, 2).contiguous()
    else:
        held = tiled.reshape(tiles, abi.LANES, width).transpose(1, 2).contiguous()
    kinds = {torch.float32: abi.MatrixKind.FLOAT32, torch.bfloat16: abi.MatrixKind.BFLOAT16}
    kind = kinds.get(dtype, abi.MatrixKind.FLOAT16)
    struct = abi.Matrix(kind=kind, rows=rows, columns=width, bits=8 * held.element_size(), codes=held.data_ptr())
    return Weight(struct, [held])


def _step(group: int) -> int:
    """The largest divisor of a group up to `MOST_STEP` that is a multiple of 4."""
    return next(size for size in range(min(group, abi.MOST_STEP) & ~3, 3, -4) if group % size == 0)


def _by_tile(values: Tensor) -> Tensor:
    """(rows, groups) as (tiles, groups, 16)."""
    values = pad(values, (0, 0, 0, -len(values) % abi.LANES))
    return values.reshape(-1, abi.LANES, values.shape[1]).transpose(1, 2).contiguous()


def _planes(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 (rows, columns) as (tiles, columns / 4, 8 * bits): the lowest 4 bits of the 64 codes of 16 rows and 4
    columns, then 2, then 1, as far as there are so many (see `unpack` in isa_generic.h)."""
    tiles, blocks = codes.shape[0] // abi.LANES, codes.shape[1] // 4
    codes = codes.reshape(tiles, abi.LANES, blocks, 4).transpose(1, 2).reshape(tiles, blocks, 64)
    if bits == 8:
        return codes.contiguous()
    parts, shift = [], 0
    for width in (4, 2, 1):
        if not bits & width:
            continue
        part = (codes >> shift & (1 << width) - 1).reshape(tiles, blocks, 8 // width, 8 * width)
        if width == 1:  # bit i of byte j is code 8 j + i
            part = part.reshape(tiles, blocks, 8, 8).transpose(2, 3)
        shifted = [part[:, :, place] << width * place for place in range(8 // width)]
        parts.append(torch.stack(shifted).sum(0, dtype=torch.uint8))
        shift += width
    return torch.cat(parts, -1).contiguous()
