"""Random small integer stacks: plumbing for tests of everything that runs them."""

from typing import Literal

import numpy as np

from gossamer.accelerator import integer
from gossamer.accelerator.golden.arithmetic import dyadic

Kind = Literal["llama", "learned", "cross", "post"]
WIDTH, HEADS, KV_HEADS, HEAD, INNER, WORDS, POSITIONS = 24, 4, 2, 6, 36, 50, 32


def random_stack(seed: int, kind: Kind = "llama", causal: bool = False, blocks: int = 2) -> integer.Stack:
    """A stack whose numbers stay within their bits: rotary and gated, or with learned positions, memory, post-norm."""
    random = np.random.default_rng(seed)

    def linear(rows: int, columns: int, spread: float) -> integer.Linear:
        """Inputs of about 40 make outputs of about `spread`."""
        pairs = [dyadic(spread * factor / (40 * 70 * columns**0.5)) for factor in random.uniform(0.7, 1.4, rows)]
        return integer.Linear(
            random.integers(-127, 128, (rows, columns)).astype(np.int8),
            random.integers(-20000, 20000, rows).astype(np.int32),
            np.array([pair[0] for pair in pairs], np.uint16),
            np.array([pair[1] for pair in pairs], np.uint8),
        )

    def norm(spread: float) -> integer.Norm:
        shift = 18
        return integer.Norm(
            (random.uniform(0.6, 1.4, WIDTH) * spread * 2 ** (shift - 12)).astype(np.int16),
            (random.normal(0, 0.2, WIDTH) * spread * 2**shift).astype(np.int32),
            shift,
            1000,
            kind != "llama",
        )

    def attention(cross: bool = False) -> integer.Attention:
        turned = kind == "llama"
        angles = np.arange(POSITIONS)[:, None] * 100.0 ** (-np.arange(HEAD // 2) / (HEAD // 2))
        table = np.stack([np.cos(angles), np.sin(angles)], -1).reshape(POSITIONS, HEAD)
        return integer.Attention(
            query=linear(HEADS * HEAD, WIDTH, 5000 if turned else 40),
            key=linear(KV_HEADS * HEAD, WIDTH, 5000 if turned else 40),
            value=linear(KV_HEADS * HEAD, WIDTH, 40),
            output=linear(WIDTH, HEADS * HEAD, 2000),
            heads=HEADS,
            kv_heads=KV_HEADS,
            head=HEAD,
            score_multiplier=45000,
            score_shift=20,
            gain=0 if cross else 1,
            rotary=np.round(127 * table).astype(np.int8) if turned else None,
            rotary_shift=14 if turned else 0,
            causal=causal and not cross,
        )

    def block() -> integer.Block:
        gated, post = kind == "llama", kind == "post"
        wide = (lambda: norm(3000)) if post else (lambda: None)
        return integer.Block(
            attention_norm=norm(40),
            attention=attention(),
            mlp_norm=norm(40),
            mlp=integer.Mlp(
                up=linear(INNER, WIDTH, 40),
                down=linear(WIDTH, INNER, 2000),
                table=random.integers(-100, 100, 256).astype(np.int8),
                gate=linear(INNER, WIDTH, 40) if gated else None,
                multiplier=40000 if gated else 0,
                shift=21 if gated else 0,
            ),
            cross_norm=norm(40) if kind == "cross" else None,
            cross=attention(cross=True) if kind == "cross" else None,
            post=post,
            attention_norm_wide=wide(),
            mlp_norm_wide=wide(),
        )

    post = kind == "post"
    return integer.Stack(
        name=kind,
        width=WIDTH,
        scale=0.001,
        blocks=tuple(block() for _ in range(blocks)),
        table=random.integers(-4000, 4000, (WORDS, WIDTH)).astype(np.int16),
        positions=None if kind == "llama" else random.integers(-900, 900, (POSITIONS, WIDTH)).astype(np.int16),
        entry=norm(3000) if post else None,
        convert=dyadic(0.012) if post else None,
        final=None if post else norm(40),
        exit=dyadic(0.012) if post else None,
        head=linear(17, WIDTH, 3000),
        logit_scale=0.01,
    )


def rows_of(stack: integer.Stack, count: int, seed: int = 7) -> np.ndarray:
    """Rows of random tokens."""
    assert stack.table is not None
    return stack.table[np.random.default_rng(seed).integers(0, WORDS, count)].astype(np.int64)


def memory_of(stack: integer.Stack, seed: int = 8) -> np.ndarray:
    """Random 8-bit rows of what cross attention reads."""
    return np.random.default_rng(seed).integers(-90, 90, (13, stack.width))
