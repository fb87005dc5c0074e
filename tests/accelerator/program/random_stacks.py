"""Small integer stacks of random numbers, scaled so that results spread over their range."""

import numpy as np

from gossamer.accelerator.golden.arithmetic import dyadic
from gossamer.accelerator.integer import Attention, Block, Linear, Mlp, Norm, Stack


class Maker:
    """Makes the parts of stacks; `group` > 0: 4-bit weights in groups of so many columns."""

    def __init__(self, seed: int, group: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.group = group

    def linear(self, n: int, k: int, spread: float = 40.0) -> Linear:
        random, group = self.random, self.group
        if group:
            weight = random.integers(-8, 8, (n, k)).astype(np.int8)
            groups = random.integers(1, 16, (n, -(-k // group))).astype(np.uint8)
            size = 73 * 4.6 * 9 * np.sqrt(k)
        else:
            weight, groups, size = random.integers(-128, 128, (n, k)).astype(np.int8), None, 73 * 73 * np.sqrt(k)
        pairs = [dyadic(spread / size * random.uniform(0.5, 1.5)) for _ in range(n)]
        return Linear(
            weight=weight,
            bias=random.normal(0, size / 4, n).astype(np.int32),
            multiplier=np.array([m for m, _ in pairs], np.uint16),
            shift=np.array([s for _, s in pairs], np.uint8),
            groups=groups,
            group=group,
        )

    def norm(self, width: int, centred: bool, bits: int = 8) -> Norm:
        gain = self.random.integers(8000, 16000, width).astype(np.int16)
        offset = self.random.integers(-(1 << 22), 1 << 22, width).astype(np.int32)
        return Norm(gain, offset, 20 if bits == 8 else 13, int(self.random.integers(0, 1 << 20)), centred)

    def attention(
        self, width: int, heads: int, kv_heads: int, head: int, rotary: int = 0, causal: bool = False, source: int = 0
    ) -> Attention:
        multiplier, shift = dyadic(120 / (40 * 40 * np.sqrt(head)))
        angles = self.random.uniform(0, 2 * np.pi, (rotary, head // 2))
        table = np.stack([np.round(127 * np.cos(angles)), np.round(127 * np.sin(angles))], -1)
        spread = 4000.0 if rotary else 40.0
        return Attention(
            query=self.linear(heads * head, width, spread),
            key=self.linear(kv_heads * head, source or width, spread),
            value=self.linear(kv_heads * head, source or width),
            output=self.linear(width, heads * head, 2000.0),
            heads=heads,
            kv_heads=kv_heads,
            head=head,
            score_multiplier=multiplier,
            score_shift=shift,
            gain=int(self.random.integers(0, 3)),
            rotary=table.reshape(rotary, head).astype(np.int8) if rotary else None,
            rotary_shift=14 if rotary else 0,
            causal=causal,
        )

    def table(self) -> np.ndarray:
        return self.random.integers(-128, 128, 256).astype(np.int8)

    def mlp(self, width: int, hidden: int, gated: bool) -> Mlp:
        multiplier, shift = dyadic(1 / 60)
        return Mlp(
            up=self.linear(hidden, width),
            down=self.linear(width, hidden, 2000.0),
            table=self.table(),
            gate=self.linear(hidden, width) if gated else None,
            multiplier=multiplier if gated else 0,
            shift=shift if gated else 0,
        )

    def rows(self, count: int, width: int) -> np.ndarray:
        return self.random.normal(0, 3000, (count, width)).clip(-32768, 32767).astype(np.int16)

    def patches(self, count: int, width: int) -> np.ndarray:
        return self.random.integers(-128, 128, (count, width)).astype(np.int8)


def llama(
    make: Maker, width: int, heads: int, kv_heads: int, head: int, hidden: int, words: int, blocks: int = 2
) -> Stack:
    """Pre-norm, rotary, grouped queries, gated MLP, a head."""
    return Stack(
        "language",
        width,
        1.0,
        tuple(
            Block(
                make.norm(width, False),
                make.attention(width, heads, kv_heads, head, rotary=64, causal=True),
                make.norm(width, False),
                make.mlp(width, hidden, True),
            )
            for _ in range(2)
        ),
        table=make.rows(words, width),
        final=make.norm(width, False),
        head=make.linear(words, width, 4000.0),
    )


def bert(make: Maker, width: int, heads: int, hidden: int) -> Stack:
    """Post-norm encoder with positions and a norm on the way in."""
    return Stack(
        "encoder",
        width,
        1.0,
        tuple(
            Block(
                make.norm(width, True),
                make.attention(width, heads, heads, width // heads),
                make.norm(width, True),
                make.mlp(width, hidden, False),
                post=True,
                attention_norm_wide=make.norm(width, True, 16),
                mlp_norm_wide=make.norm(width, True, 16),
            )
            for _ in range(2)
        ),
        positions=make.rows(40, width),
        entry=make.norm(width, True, 16),
        convert=dyadic(1 / 60),
        exit=dyadic(1 / 70),
    )


def vit(make: Maker, width: int, heads: int, hidden: int, patch: int, patches: int, out: int) -> Stack:
    """Pre-norm tower with a class token that is dropped, positions, and a projector to rows of width `out`."""
    return Stack(
        "tower",
        width,
        1.0,
        tuple(
            Block(
                make.norm(width, True),
                make.attention(width, heads, heads, width // heads),
                make.norm(width, True),
                make.mlp(width, hidden, False),
            )
            for _ in range(2)
        ),
        patch=make.linear(width, patch, 2000.0),
        prefix=make.rows(1, width),
        positions=make.rows(patches + 1, width),
        entry=make.norm(width, True, 16),
        final=make.norm(width, True),
        projector=((make.linear(out, width), make.table()),),
        head=make.linear(out, out, 3000.0),
        drop=1,
    )


def crossed(make: Maker, width: int, heads: int, hidden: int, source: int, words: int) -> Stack:
    """A decoder with positions that reads another stack's rows of width `source`, post-norm."""
    return Stack(
        "decoder",
        width,
        1.0,
        tuple(
            Block(
                make.norm(width, True),
                make.attention(width, heads, heads, width // heads, causal=True),
                make.norm(width, True),
                make.mlp(width, hidden, False),
                cross_norm=make.norm(width, True),
                cross=make.attention(width, heads, heads, width // heads, source=source),
                post=True,
                attention_norm_wide=make.norm(width, True, 16),
                mlp_norm_wide=make.norm(width, True, 16),
                cross_norm_wide=make.norm(width, True, 16),
            )
            for _ in range(2)
        ),
        table=make.rows(words, width),
        positions=make.rows(48, width),
        convert=dyadic(1 / 60),
        exit=dyadic(1 / 70),
        head=make.linear(words, width, 4000.0),
    )
