"""Integer models of a stated shape: without weights, to be lowered, timed and counted; or random, to test an engine."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.accelerator.integer import Attention, Block, Linear, Mlp, Norm, Stack


@dataclass(frozen=True)
class Shape:
    """A transformer by its sizes. `head`: columns of a head; `gated`: SwiGLU; `rotary`, `causal`: a decoder."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    head: int
    gated: bool = False
    rotary: bool = False
    causal: bool = False
    post: bool = False
    centred: bool = True

    def macs(self, rows: int, context: int = 0) -> int:
        """Multiply-accumulates of one block over `rows` rows after `context` others; causal: the triangle."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        linear = rows * self.width * (2 * queries + 2 * keys + (3 if self.gated else 2) * self.inner)
        seen = rows * context + (rows * (rows + 1) // 2 if self.causal else rows * rows)
        return linear + 2 * queries * seen


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("roberta-base", 12, 768, 12, 12, 3072, 64, post=True),
        Shape("roberta-large", 24, 1024, 16, 16, 4096, 64, post=True),
        Shape("bert-base", 12, 768, 12, 12, 3072, 64, post=True),
        Shape("deit-s", 12, 384, 6, 6, 1536, 64),
        Shape("clip-l-336", 24, 1024, 16, 16, 4096, 64),
        Shape("tinyllama-1.1b", 22, 2048, 32, 4, 5632, 64, True, True, True, False, False),
        Shape("llama-3-8b", 32, 4096, 32, 8, 14336, 128, True, True, True, False, False),
    )
}
"""Published architectures: Liu et al. 2019, Devlin et al. 2019, Touvron et al. 2021, Radford et al. 2021 (the tower of
TinyLLaVA 1.1B, Zhou et al. 2024), Zhang et al. 2024, Meta 2024."""


def hollow(shape: Shape, blocks: int, positions: int = 1) -> Stack:
    """A stack of `blocks` blocks of this shape whose weights are zeros that take no memory."""
    return _stack(shape, blocks, positions, None)


def sample(shape: Shape, blocks: int, positions: int = 1, seed: int = 0) -> Stack:
    """A stack of random numbers in the ranges that calibrated models have."""
    return _stack(shape, blocks, positions, np.random.default_rng(seed))


Source = np.random.Generator | None


def _stack(shape: Shape, blocks: int, positions: int, source: Source) -> Stack:
    made = tuple(_block(shape, positions, source) for _ in range(blocks if source else 1))
    blocks_made = made if source else made * blocks
    return Stack(shape.name, shape.width, 1.0, blocks_made, convert=(1 << 15, 20) if shape.post else None)


def _block(shape: Shape, positions: int, source: Source) -> Block:
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    norms = [_norm(shape.width, shape.centred, source) for _ in range(4)]
    attention = Attention(
        query=_linear(queries, shape.width, source), key=_linear(keys, shape.width, source),
        value=_linear(keys, shape.width, source), output=_linear(shape.width, queries, source, wide=True),
        heads=shape.heads, kv_heads=shape.kv_heads, head=shape.head,
        score_multiplier=1 << 15, score_shift=20, causal=shape.causal,
        rotary=_numbers(source, -127, 127, (positions, shape.head), np.int8) if shape.rotary else None,
        rotary_shift=7,
    )  # fmt: skip
    mlp = Mlp(
        up=_linear(shape.inner, shape.width, source), down=_linear(shape.width, shape.inner, source, wide=True),
        table=_numbers(source, -127, 127, (256,), np.int8),
        gate=_linear(shape.inner, shape.width, source) if shape.gated else None, multiplier=1 << 15, shift=21,
    )  # fmt: skip
    return Block(
        norms[0], attention, norms[1], mlp, post=shape.post,
        attention_norm_wide=norms[2] if shape.post else None, mlp_norm_wide=norms[3] if shape.post else None,
    )  # fmt: skip


def _linear(rows: int, columns: int, source: Source, wide: bool = False) -> Linear:
    """Outputs fill 8 bits, or half of 14 (`wide`), for inputs of 8 bits."""
    shift = 15 + 6 + int(np.ceil(np.log2(columns) / 2)) - (5 if wide else 0)
    return Linear(
        weight=_numbers(source, -127, 127, (rows, columns), np.int8),
        bias=_numbers(source, -1000, 1000, (rows,), np.int32),
        multiplier=_numbers(source, 1 << 15, (1 << 16) - 1, (rows,), np.uint16),
        shift=np.broadcast_to(np.uint8(shift), rows),
    )


def _norm(width: int, centred: bool, source: Source) -> Norm:
    return Norm(
        _numbers(source, 64, 127, (width,), np.int16), _numbers(source, -9999, 9999, (width,), np.int32), 12, 1, centred
    )


def _numbers(source: Source, low: int, high: int, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    if source is None:
        return np.broadcast_to(kind(0), shape)
    return source.integers(low, high, shape, endpoint=True).astype(kind)
