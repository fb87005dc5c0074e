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


GROUP = 64
"""Columns of a group of 4-bit weights."""


def hollow(shape: Shape, blocks: int, positions: int = 1, bits: int = 8) -> Stack:
    """A stack of `blocks` blocks of this shape whose weights, of 8 or 4 bits, are zeros that take no memory."""
    return _stack(shape, blocks, positions, _Numbers(None, bits))


def sample(shape: Shape, blocks: int, positions: int = 1, seed: int = 0) -> Stack:
    """A stack of random numbers in the ranges that calibrated models have."""
    return _stack(shape, blocks, positions, _Numbers(np.random.default_rng(seed)))


@dataclass(frozen=True)
class _Numbers:
    """Where a stack's numbers are from: random, or without a source all zeros."""

    source: np.random.Generator | None
    bits: int = 8

    def draw(self, low: int, high: int, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
        if self.source is None:
            return np.broadcast_to(kind(0), shape)
        return self.source.integers(low, high, shape, endpoint=True).astype(kind)

    def linear(self, rows: int, columns: int, wide: bool = False) -> Linear:
        """Outputs fill 8 bits, or half of 14 (`wide`), for inputs of 8 bits."""
        shift = 15 + 6 + int(np.ceil(np.log2(columns) / 2)) - (5 if wide else 0)
        four = self.bits == 4
        low, high = (-8, 7) if four else (-127, 127)
        return Linear(
            weight=self.draw(low, high, (rows, columns), np.int8),
            bias=self.draw(-1000, 1000, (rows,), np.int32),
            multiplier=self.draw(1 << 15, (1 << 16) - 1, (rows,), np.uint16),
            shift=np.broadcast_to(np.uint8(shift), rows),
            groups=self.draw(1, 15, (rows, -(-columns // GROUP)), np.uint8) if four else None,
            group=GROUP if four else 0,
        )

    def norm(self, width: int, centred: bool) -> Norm:
        return Norm(self.draw(64, 127, (width,), np.int16), self.draw(-9999, 9999, (width,), np.int32), 12, 1, centred)


def _stack(shape: Shape, blocks: int, positions: int, numbers: _Numbers) -> Stack:
    made = tuple(_block(shape, positions, numbers) for _ in range(blocks if numbers.source else 1))
    blocks_made = made if numbers.source else made * blocks
    return Stack(shape.name, shape.width, 1.0, blocks_made, convert=(1 << 15, 20) if shape.post else None)


def _block(shape: Shape, positions: int, numbers: _Numbers) -> Block:
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    linear = numbers.linear
    norms = [numbers.norm(shape.width, shape.centred) for _ in range(4)]
    attention = Attention(
        query=linear(queries, shape.width), key=linear(keys, shape.width), value=linear(keys, shape.width),
        output=linear(shape.width, queries, wide=True),
        heads=shape.heads, kv_heads=shape.kv_heads, head=shape.head,
        score_multiplier=1 << 15, score_shift=20, causal=shape.causal,
        rotary=numbers.draw(-127, 127, (positions, shape.head), np.int8) if shape.rotary else None,
        rotary_shift=7,
    )  # fmt: skip
    mlp = Mlp(
        up=linear(shape.inner, shape.width), down=linear(shape.width, shape.inner, wide=True),
        table=numbers.draw(-127, 127, (256,), np.int8),
        gate=linear(shape.inner, shape.width) if shape.gated else None, multiplier=1 << 15, shift=21,
    )  # fmt: skip
    return Block(
        norms[0], attention, norms[1], mlp, post=shape.post,
        attention_norm_wide=norms[2] if shape.post else None, mlp_norm_wide=norms[3] if shape.post else None,
    )  # fmt: skip
