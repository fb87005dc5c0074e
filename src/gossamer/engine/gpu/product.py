"""Inputs times a packed weight, the way that was measured to be fastest for so many rows of inputs."""

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gossamer.engine.gpu.packed import PackedWeight


class Way(NamedTuple):
    """Up to `most` rows of inputs: one of the kernels with its tiles (see `kernels.py`).

    `expand` makes the dense weight in 16 bits, multiplies by it with the vendor's product, and forgets it: with many
    rows that costs less than unpacking once for each tile of rows.
    """

    most: float
    kernel: Literal["vector", "matrix", "expand"]
    tiles: dict[str, int]


WAYS: dict[int, tuple[Way, ...]] = {
    4: (
        Way(1, "vector", {"rows": 1, "words": 512, "warps": 2}),
        Way(16, "matrix", {"count": 16, "rows": 32, "words": 64, "splits": 1, "warps": 4}),
        Way(32, "matrix", {"count": 32, "rows": 64, "words": 32, "splits": 4, "warps": 4}),
        Way(float("inf"), "expand", {"rows": 4, "words": 128, "warps": 4}),
    ),
    8: (
        Way(1, "vector", {"rows": 1, "words": 512, "warps": 2}),
        Way(16, "matrix", {"count": 16, "rows": 32, "words": 64, "splits": 1, "warps": 4}),
        Way(32, "matrix", {"count": 32, "rows": 64, "words": 32, "splits": 4, "warps": 4}),
        Way(128, "expand", {"rows": 4, "words": 256, "warps": 4}),
        Way(float("inf"), "expand", {"rows": 2, "words": 256, "warps": 4}),
    ),
}
"""By the bits of a code in its word: what was fastest over shapes and groups on one NVIDIA H200, torch 2.11.0+cu130, by
`python benchmarks/gpu.py --sweep --rounds 2`. Words of two bits were not swept: they go the way of four."""
WAYS[2] = WAYS[4]


def way_for(rows: int, width: int) -> Way:
    """The way for so many rows of inputs and bits of a code in its word."""
    return next(way for way in WAYS[width] if rows <= way.most)


def product(x: Tensor, weight: PackedWeight) -> Tensor:
    """`x` (count, columns) by the weight: (count, rows), of the type of `x`.

    On a GPU with Triton inputs are multiplied as bfloat16 and summed in float32, by weights rounded to bfloat16 but for
    a single row. Elsewhere the weight is unpacked and multiplied in the type of `x`.
    """
    if not x.is_cuda or not has_triton():
        return x @ weight.dense().to(x.dtype).T
    given = x.to(torch.bfloat16).contiguous()
    return run(way_for(len(x), weight.layout.width), given, weight).to(x.dtype)


def run(way: Way, x: Tensor, weight: PackedWeight) -> Tensor:
    """The product by one of the ways; `x` is contiguous."""
    from gossamer.engine.gpu import kernels

    if not len(x):
        return x.new_empty(0, weight.layout.rows)
    tiles: dict[str, Any] = way.tiles
    if way.kernel == "expand":
        return torch.nn.functional.linear(x, kernels.expand(weight, x.dtype, **tiles))
    return kernels.vector(x, weight, **tiles) if way.kernel == "vector" else kernels.matrix(x, weight, **tiles)


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None
