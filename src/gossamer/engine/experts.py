"""Running the experts of a mixture one by one, so that what each of them reads and writes can be seen.

transformers keeps the matrices of a block's experts as stacked parameters and runs all of them in one call, which no
hook sees into. Inside `one_by_one` the same module computes the same, expert after expert.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True, eq=False)
class Routed:
    """Where the rows that an expert gets come from: `tokens` int64 (rows,), rising, of the `count` that the module got.

    `weights` (rows,) is the router's weight for each.
    """

    tokens: Tensor
    count: int
    weights: Tensor


Read = Callable[[str, int, Tensor, Routed], None]
"""Is told the parameter, the expert's number, and the inputs (rows, columns) that its matrix is about to multiply. It
may change the matrix: the product is taken afterwards."""

Written = Callable[[int, Tensor, Routed], None]
"""Is told an expert's number and its outputs (rows, width) before they are weighted."""


def runs_one_by_one(module: nn.Module) -> bool:
    """Whether a module follows transformers' convention for stacked experts, which says how they are computed."""
    experts: Any = module
    settings = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "num_experts")
    return all(hasattr(module, name) for name in settings) and all(
        isinstance(getattr(module, name, None), nn.Parameter) and getattr(module, name).dim() == 3
        for name in (_first(experts), "down_proj")
    )


@contextmanager
def one_by_one(module: nn.Module, read: Read | None = None, written: Written | None = None) -> Iterator[None]:
    """Inside, this module (see `runs_one_by_one`) runs its experts in order; those that no token is sent to do not run.

    Outputs are those of the module's own forward up to the order in which a token's experts are summed.
    """
    experts: Any = module

    def multiply(name: str, index: int, inputs: Tensor, routed: Routed) -> Tensor:
        if read is not None:
            read(name, index, inputs, routed)
        matrix = getattr(experts, name)[index]
        bias = getattr(experts, f"{name}_bias")[index] if experts.has_bias else None
        return linear(inputs, matrix.T if experts.is_transposed else matrix, bias)

    def forward(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros_like(hidden)
        for index in range(experts.num_experts):
            tokens, rank = torch.where(chosen == index)
            if not len(tokens):
                continue
            routed = Routed(tokens, len(hidden), weights[tokens, rank])
            states = multiply(_first(experts), index, hidden[tokens], routed)
            states = experts._apply_gate(states) if experts.has_gate else experts.act_fn(states)
            states = multiply("down_proj", index, states, routed)
            if experts.has_post_expert_norm:
                states = experts.post_expert_norm(states)
            if written is not None:
                written(index, states, routed)
            total.index_add_(0, tokens, (states * routed.weights.unsqueeze(-1)).to(total.dtype))
        return total

    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


def _first(experts: Any) -> str:
    """The parameter that reads the hidden state."""
    return "gate_up_proj" if experts.has_gate else "up_proj"
