"""The integer model: a quantised transformer as numbers the engine computes with. No floats but the scales that
name units.

A `Stack` is a run of transformer blocks with what stands before and after: a language model, a vision tower, an
encoder. `quantize` makes it from a calibrated model, `golden/tensors.py` runs it by whole tensors, `program` lowers
it to a schedule. Rotary embeddings turn adjacent columns (2i, 2i+1): the rows of query and key weights are in that
order.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Linear:
    """`requantise(Σ a · w + bias, multiplier, shift)` of every output column.

    weight: int8 (N, K); 4-bit values −8 … 7 where `groups` is given.
    bias: int32 (N,); multiplier: uint16 (N,); shift: uint8 (N,).
    groups: uint8 1 … 15 (N, ceil(K / group)): multipliers of 4-bit groups of `group` columns.
    """

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.uint16]
    shift: NDArray[np.uint8]
    groups: NDArray[np.uint8] | None = None
    group: int = 0


@dataclass(frozen=True)
class Norm:
    """`scale_norm(normalise(x, epsilon, centred), gain, offset, shift)`. gain: int16 (d,), offset: int32 (d,)."""

    gain: NDArray[np.int16]
    offset: NDArray[np.int32]
    shift: int
    epsilon: int
    centred: bool


@dataclass(frozen=True)
class Attention:
    """Heads of `head` columns; `kv_heads` divides `heads`.

    query, key: → int8, or ROTARY where `rotary` is given: int8 (positions, head) of cos, sin, cos, sin …, and the
    step's `rotary_shift`. value: → int8. Scores: `score_multiplier`, `score_shift` (a step is 1/64 octave). `gain`:
    doublings of the average on its way to `output`, whose result is added to the residual stream.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int
    kv_heads: int
    head: int
    score_multiplier: int
    score_shift: int
    gain: int = 0
    rotary: NDArray[np.int8] | None = None
    rotary_shift: int = 0
    causal: bool = False


@dataclass(frozen=True)
class Mlp:
    """`down(table(up(x)))`, or `down(table(gate(x)) · up(x))` with the product requantised by `multiplier`, `shift`.

    table: int8 (256,), indexed by the byte of the 8-bit result.
    """

    up: Linear
    down: Linear
    table: NDArray[np.int8]
    gate: Linear | None = None
    multiplier: int = 0
    shift: int = 0


@dataclass(frozen=True)
class Block:
    """Attention, cross attention where there is one, MLP; every one added to the residual stream.

    A norm comes before each (`post` false: pre-norm) or after each addition (post-norm, as in BERT: it is applied
    twice, to 8 bits for the next product and to 16 bits as the new residual stream; `wide` norms give the latter).
    The memory of cross attention is 8 bits: the other stack's output.
    """

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp
    cross_norm: Norm | None = None
    cross: Attention | None = None
    post: bool = False
    attention_norm_wide: Norm | None = None
    mlp_norm_wide: Norm | None = None
    cross_norm_wide: Norm | None = None


@dataclass(frozen=True)
class Stack:
    """Blocks over a 16-bit residual stream of `width` columns, one step of which is `scale`.

    Input, one of: `table` int16 (V, width), a row for each token; `patch`, a Linear (→ 16 bits) on 8-bit patches of
    scale `input_scale`, after `prefix` rows int16 (class tokens); else rows given. `positions` int16 (P, width) are
    added. `entry`: norm on the way in (16 bits to 16). `convert`: 16 → 8 bits for what reads the first product
    without a norm (post-norm). `final`: norm to 8 bits before `head`, or where it is none, `exit` = (multiplier,
    shift) of the conversion to 8 bits. `head`: Linear → 16 bits (logits: scale `logit_scale`), after `projector`
    layers (Linear, table | none) → 8 bits each.
    """

    name: str
    width: int
    scale: float
    blocks: tuple[Block, ...]
    table: NDArray[np.int16] | None = None
    patch: Linear | None = None
    input_scale: float = 0.0
    prefix: NDArray[np.int16] | None = None
    positions: NDArray[np.int16] | None = None
    entry: Norm | None = None
    convert: tuple[int, int] | None = None
    final: Norm | None = None
    exit: tuple[int, int] | None = None
    projector: tuple[tuple[Linear, NDArray[np.int8] | None], ...] = ()
    head: Linear | None = None
    logit_scale: float = 0.0
    drop: int = 0
    """Leading rows (class tokens) that are left out before the projector or head."""
    notes: dict[str, float] = field(default_factory=dict)
