"""The operations that a trace follows, by name, and where they leave the channels."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PRODUCTS = frozenset({
    "linear", "conv1d", "conv2d", "conv3d", "embedding", "_grouped_mm",
})  # fmt: skip
"""A weight reads the input and writes the result."""
MIXES = frozenset({
    "scaled_dot_product_attention", "matmul", "bmm", "__matmul__",
})  # fmt: skip
"""Vectors, the last operand, are summed with weights that the other operands give."""
SAME = frozenset({
    "clone", "contiguous", "detach", "dropout", "float", "double", "half", "bfloat16", "to", "type", "type_as",
})  # fmt: skip
"""The result lies as the first operand does."""
MOVES = frozenset({
    "view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "swapaxes",
    "permute", "movedim", "expand", "expand_as", "repeat", "broadcast_to", "repeat_interleave", "__getitem__",
    "select", "narrow", "index_select", "split", "split_with_sizes", "chunk", "unbind", "tensor_split", "cat",
    "concat", "stack", "hstack", "vstack", "roll", "flip", "masked_fill", "masked_scatter", "where", "pad", "mean",
    "sum",
})  # fmt: skip
"""The result holds values of the operands, or sums and means of them, in other places."""
WRITES = frozenset({
    "__setitem__", "index_put_", "masked_scatter_", "copy_",
})  # fmt: skip
"""As `MOVES`, into the first operand."""
SUMS = frozenset({
    "add", "add_", "sub", "sub_", "__add__", "__radd__", "__iadd__", "__sub__", "__isub__", "index_add",
    "index_add_",
})  # fmt: skip
"""The result is a sum of its operands."""
SCALES = frozenset({
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__",
})  # fmt: skip
"""The result is a product or quotient."""
BLIND = frozenset({
    "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full",
})  # fmt: skip
"""The result does not depend on values."""


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def same_layout(value: Any, result: Any) -> bool:
    """Whether both are tensors of one shape and order in memory, as views by attribute are (`data`, `real`)."""
    return (
        isinstance(value, Tensor)
        and isinstance(result, Tensor)
        and value.shape == result.shape
        and value.stride() == result.stride()
    )


def channel_axis(channels: Tensor, size: int) -> tuple[int, int] | None:
    """Where channel numbers, from 1 on, run along one dimension alone: (dimension from the end, length of the piece
    that repeats), None where they lie otherwise. A piece is all `size` channels or an equal part of them; numbers of 0
    stand for values of 0, which are 0 in every basis."""
    for back, length in enumerate(reversed(channels.shape), 1):
        piece = min(length, size)
        if piece < 2 or length % piece or size % piece:
            continue
        expected = (torch.arange(length) % piece).reshape(-1, *[1] * (back - 1)).to(channels)
        if bool((((channels - 1) % piece == expected) | (channels == 0)).all()) and bool(channels.any()):
            return -back, piece
    return None
