"""The float model in the shape of the integer one: what `integer.Stack` says in integers, said in real numbers.

`read` fills it from a model's modules; `forward` runs it; `convert` makes the integers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "tanh": torch.tanh,
}
"""What tables are made of."""


@dataclass(frozen=True, eq=False)
class Linear:
    """weight (N, K), bias (N,)."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer norm (`centred`) or RMS norm. weight, bias (d,)."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float
    centred: bool


@dataclass(frozen=True, eq=False)
class Attention:
    """`rotary`: cos, sin (positions, head / 2) of adjacent columns; the weights' rows are in that order."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int
    kv_heads: int
    head: int
    scaling: float
    rotary: tuple[Tensor, Tensor] | None = None
    causal: bool = False


@dataclass(frozen=True, eq=False)
class Mlp:
    """`down(act(up))` or `down(act(gate) · up)`; `activation` is a name in `ACTIVATIONS`."""

    up: Linear
    down: Linear
    activation: str
    gate: Linear | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """Norms before each part, or after its addition (`post`)."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp
    post: bool = False


@dataclass(frozen=True, eq=False)
class Stack:
    """Fields as in `integer.Stack`. `patch` reads patches (P, channels · side · side), channels first."""

    name: str
    width: int
    blocks: tuple[Block, ...]
    table: Tensor | None = None
    patch: Linear | None = None
    prefix: Tensor | None = None
    positions: Tensor | None = None
    entry: Norm | None = None
    final: Norm | None = None
    projector: tuple[tuple[Linear, str | None], ...] = ()
    head: Linear | None = None
    drop: int = 0
