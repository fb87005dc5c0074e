"""Integer models of a stated shape without weights: enough to lower, time and count, nothing to compute with."""

from dataclasses import dataclass

import numpy as np

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
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    norm = _norm(shape.width, shape.centred)
    attention = Attention(
        query=_linear(queries, shape.width), key=_linear(keys, shape.width), value=_linear(keys, shape.width),
        output=_linear(shape.width, queries), heads=shape.heads, kv_heads=shape.kv_heads, head=shape.head,
        score_multiplier=1 << 15, score_shift=20, causal=shape.causal,
        rotary=np.broadcast_to(np.int8(0), (positions, shape.head)) if shape.rotary else None, rotary_shift=7,
    )  # fmt: skip
    mlp = Mlp(
        up=_linear(shape.inner, shape.width), down=_linear(shape.width, shape.inner),
        table=np.broadcast_to(np.int8(0), 256),
        gate=_linear(shape.inner, shape.width) if shape.gated else None, multiplier=1 << 15, shift=20,
    )  # fmt: skip
    wide = norm if shape.post else None
    block = Block(norm, attention, norm, mlp, post=shape.post, attention_norm_wide=wide, mlp_norm_wide=wide)
    return Stack(shape.name, shape.width, 1.0, (block,) * blocks, convert=(1 << 15, 20) if shape.post else None)


def _linear(rows: int, columns: int) -> Linear:
    return Linear(
        weight=np.broadcast_to(np.int8(0), (rows, columns)), bias=np.broadcast_to(np.int32(0), rows),
        multiplier=np.broadcast_to(np.uint16(0), rows), shift=np.broadcast_to(np.uint8(1), rows),
    )  # fmt: skip


def _norm(width: int, centred: bool) -> Norm:
    return Norm(np.broadcast_to(np.int16(0), width), np.broadcast_to(np.int32(0), width), 12, 1, centred)
