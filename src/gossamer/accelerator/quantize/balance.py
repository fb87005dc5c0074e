"""Outliers of gated products moved into weights: SmoothQuant's balance (Xiao et al. 2023, arXiv 2211.10438), for free.

Column j of `act(gate) · up` is divided by c_j, column j of `down` multiplied by it. `up` has a multiplier for every
column anyway, so nothing is added to what the engine does, and the model's function does not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gossamer.accelerator.quantize.floating import Block, Linear, Stack
from gossamer.accelerator.quantize.model import Example, FloatModel, without_gradients

STRENGTH = 0.5
"""Share of an outlier that goes into the weights."""


@dataclass
class _Columns:
    """A look that notes the largest absolute value of every column of the products."""

    most: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, values: Tensor) -> Tensor:
        if name.endswith(".mlp.product"):
            new = values.abs().flatten(0, -2).amax(0)
            self.most[name] = torch.maximum(self.most[name], new) if name in self.most else new
        return values


def balance(model: FloatModel, examples: Sequence[Example]) -> FloatModel:
    """The same function with products of columns more alike on `examples`."""
    seen = {name: _Columns() for name in model.stacks}
    for example in examples:
        without_gradients(model, example, seen)
    return replace(model, stacks={name: _balanced(stack, seen[name].most) for name, stack in model.stacks.items()})


def _balanced(stack: Stack, most: dict[str, Tensor]) -> Stack:
    blocks = []
    for number, block in enumerate(stack.blocks):
        columns = most.get(f"blocks.{number}.mlp.product")
        blocks.append(block if columns is None else _divided(block, columns))
    return replace(stack, blocks=tuple(blocks))


def _divided(block: Block, columns: Tensor) -> Block:
    up, down = block.mlp.up, block.mlp.down
    least = 1e-5 * float(columns.max()) + 1e-30
    weights = down.weight.abs().amax(0)
    factors = columns.clamp(min=least) ** STRENGTH / weights.clamp(min=1e-5 * float(weights.max()) + 1e-30) ** (
        1 - STRENGTH
    )
    factors = factors / factors.log().mean().exp()
    smaller = Linear(up.weight / factors[:, None], None if up.bias is None else up.bias / factors)
    return replace(block, mlp=replace(block.mlp, up=smaller, down=Linear(down.weight * factors, down.bias)))
