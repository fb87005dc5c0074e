"""Triton's kernels on packed weights (see `packed.py`). Imported only where Triton is installed.

A code becomes a float without a conversion: its bits, where they stand, are or-ed into the mantissa of 2^23, and
2^23 plus the zero point, as far to the left, is taken off again, which is exact; inputs make up for the shift.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.engine.gpu.packed import PackedWeight


@triton.jit
def _steps(words, zero, exponent, PLACE: tl.constexpr, WIDTH: tl.constexpr):
    """Code − zero point of the codes at one place of words, times 2^(place * width mod 16), float32. `exponent` is
    2^23's, not a constant, so that masking and or-ing become one instruction."""
    shift: tl.constexpr = PLACE * WIDTH
    left: tl.constexpr = shift % 16
    mask: tl.constexpr = ((1 << WIDTH) - 1) << left
    held = words
    if shift >= 16:
        held = words >> 16
    number = ((held & mask) | exponent).to(tl.float32, bitcast=True)
    return number - (8388608.0 + zero * (1 << left))


_ANY = ["count", "chunks", "groups", "per_scale", "exponent"]
"""Arguments whose values make no difference to the code."""


@triton.jit(do_not_specialize=_ANY)
def _vector(
    x, words, scales, zeros, out, rows, columns, chunks, groups, per_scale, exponent,
    HALF: tl.constexpr, HAS_ZEROS: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One row of inputs by `ROWS` rows of the weight, `CHUNKS` chunks of each at a time."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    word = tl.arange(0, SPAN)[None, None, :]
    total = tl.zeros([ROWS, CHUNKS, SPAN], tl.float32)
    for begin in range(0, chunks, CHUNKS):
        chunk = begin + tl.arange(0, CHUNKS)[None, :, None]
        there = (row < rows) & (chunk < chunks)
        held = tl.load(words + row.to(tl.int64) * (chunks * SPAN) + chunk * SPAN + word, mask=there, other=0)
        group = row * groups + chunk // per_scale
        scale = tl.load(scales + group, mask=there, other=0.0).to(tl.float32)
        zero = HALF * 1.0
        if HAS_ZEROS:
            zero = tl.load(zeros + group, mask=there, other=0).to(tl.float32)
        part = tl.zeros([ROWS, CHUNKS, SPAN], tl.float32)
        for place in tl.static_range(32 // WIDTH):
            column = chunk * (SPAN * 32 // WIDTH) + place * SPAN + word
            value = tl.load(x + column, mask=column < columns, other=0.0).to(tl.float32)
            part += _steps(held, zero, exponent, place, WIDTH) * (value * (1.0 / (1 << (place * WIDTH % 16))))
        total += part * scale
    found = tl.sum(tl.sum(total, 2), 1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tl.store(out + row, found.to(out.dtype.element_ty), mask=row < rows)


@triton.jit(do_not_specialize=_ANY)
def _matrix(
    x, words, scales, zeros, out, count, rows, columns, chunks, groups, per_scale, exponent,
    HALF: tl.constexpr, HAS_ZEROS: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    COUNT: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """`COUNT` rows of inputs by `ROWS` rows of the weight on the matrix units; every `SPLITS`-th run of `WORDS` words,
    so that `out` (splits, count, rows) is to be summed."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * COUNT + tl.arange(0, COUNT)
    split = tl.program_id(2)
    total = tl.zeros([COUNT, ROWS], tl.float32)
    for begin in range(split * WORDS, chunks * SPAN, SPLITS * WORDS):
        word = begin + tl.arange(0, WORDS)
        chunk = word // SPAN
        first = chunk * (SPAN * 32 // WIDTH) + word % SPAN
        there = (row < rows)[None, :] & (chunk < chunks)[:, None]
        held = tl.load(words + row[None, :].to(tl.int64) * (chunks * SPAN) + word[:, None], mask=there, other=0)
        group = row[None, :] * groups + (chunk // per_scale)[:, None]
        scale = tl.load(scales + group, mask=there, other=0.0).to(tl.float32)
        zero = HALF * 1.0
        if HAS_ZEROS:
            zero = tl.load(zeros + group, mask=there, other=0).to(tl.float32)
        for place in tl.static_range(32 // WIDTH):
            column = first + place * SPAN
            inside = (at < count)[:, None] & (column < columns)[None, :]
            value = tl.load(x + at[:, None].to(tl.int64) * columns + column[None, :], mask=inside, other=0.0)
            weight = _steps(held, zero, exponent, place, WIDTH) * (scale * (1.0 / (1 << (place * WIDTH % 16))))
            total = tl.dot(value, weight.to(value.dtype), total)
    where = (split * count + at[:, None]).to(tl.int64) * rows + row[None, :]
    tl.store(out + where, total.to(out.dtype.element_ty), mask=(at < count)[:, None] & (row < rows)[None, :])


@triton.jit(do_not_specialize=_ANY)
def _expand(
    words, scales, zeros, out, rows, columns, chunks, groups, per_scale, exponent,
    HALF: tl.constexpr, HAS_ZEROS: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The dense weight (rows, columns)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    chunk = (tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS))[None, :, None]
    word = tl.arange(0, SPAN)[None, None, :]
    there = (row < rows) & (chunk < chunks)
    held = tl.load(words + row.to(tl.int64) * (chunks * SPAN) + chunk * SPAN + word, mask=there, other=0)
    group = row * groups + chunk // per_scale
    scale = tl.load(scales + group, mask=there, other=0.0).to(tl.float32)
    zero = HALF * 1.0
    if HAS_ZEROS:
        zero = tl.load(zeros + group, mask=there, other=0).to(tl.float32)
    for place in tl.static_range(32 // WIDTH):
        column = chunk * (SPAN * 32 // WIDTH) + place * SPAN + word
        weight = _steps(held, zero, exponent, place, WIDTH) * (scale * (1.0 / (1 << (place * WIDTH % 16))))
        inside = (row < rows) & (column < columns)
        tl.store(out + row.to(tl.int64) * columns + column, weight.to(out.dtype.element_ty), mask=inside)


def _shapes(weight: PackedWeight) -> tuple[tuple[int, ...], dict[str, int]]:
    """The kernels' arguments after the matrix's sizes, and what they are compiled for."""
    layout = weight.layout
    sizes = (layout.columns, layout.chunks, weight.scales.shape[1], layout.chunks_per_scale, 0x4B000000)
    fixed = {"HALF": 1 << (layout.bits - 1), "HAS_ZEROS": weight.zeros is not None}
    return sizes, {**fixed, "WIDTH": layout.width, "SPAN": layout.span}


def vector(x: Tensor, weight: PackedWeight, rows: int = 4, words: int = 512, warps: int = 4) -> Tensor:
    """`x` (1, columns) by the weight: (1, rows). A program takes `rows` rows, about `words` words of each at a time."""
    layout = weight.layout
    sizes, fixed = _shapes(weight)
    chunks = max(1, min(words, triton.next_power_of_2(layout.chunks * layout.span)) // layout.span)
    out = x.new_empty(1, layout.rows)
    zeros = weight.scales if weight.zeros is None else weight.zeros
    _vector[(triton.cdiv(layout.rows, rows),)](
        x, weight.words, weight.scales, zeros, out, layout.rows, *sizes, **fixed, ROWS=rows, CHUNKS=chunks,
        num_warps=warps,
    )  # fmt: skip
    return out


def matrix(
    x: Tensor, weight: PackedWeight, count: int = 16, rows: int = 64, words: int = 32, splits: int = 1,
    warps: int = 4, stages: int = 3,
) -> Tensor:  # fmt: skip
    """`x` (count, columns) by the weight: (count, rows), in tiles of so many rows of both and words of a row."""
    layout = weight.layout
    sizes, fixed = _shapes(weight)
    dtype = torch.float32 if splits > 1 else x.dtype
    out = torch.empty(splits, len(x), layout.rows, dtype=dtype, device=x.device)
    zeros = weight.scales if weight.zeros is None else weight.zeros
    _matrix[(triton.cdiv(layout.rows, rows), triton.cdiv(len(x), count), splits)](
        x, weight.words, weight.scales, zeros, out, len(x), layout.rows, *sizes, **fixed, COUNT=count, ROWS=rows,
        WORDS=words, SPLITS=splits, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out[0] if splits == 1 else out.sum(0).to(x.dtype)


def expand(weight: PackedWeight, dtype: torch.dtype, rows: int = 4, words: int = 256, warps: int = 4) -> Tensor:
    """The weight (rows, columns) as `dtype`."""
    layout = weight.layout
    sizes, fixed = _shapes(weight)
    chunks = max(1, min(words, triton.next_power_of_2(layout.chunks * layout.span)) // layout.span)
    out = torch.empty(layout.rows, layout.columns, dtype=dtype, device=weight.words.device)
    zeros = weight.scales if weight.zeros is None else weight.zeros
    _expand[(triton.cdiv(layout.rows, rows), triton.cdiv(layout.chunks, chunks))](
        weight.words, weight.scales, zeros, out, layout.rows, *sizes, **fixed, ROWS=rows, CHUNKS=chunks,
        num_warps=warps,
    )  # fmt: skip
    return out
