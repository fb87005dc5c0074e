"""The fake-quantised twin: weights and activations on the same grids as the integer model, float arithmetic in between.

What the integer model loses against it is the price of integer arithmetic alone: tables, norms, softmax, rotary tables,
16-bit multipliers.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from gossamer.accelerator.quantize.calibrate import Scales, rounding
from gossamer.accelerator.quantize.floating import Linear, Stack
from gossamer.accelerator.quantize.model import Example, FloatModel, without_gradients
from gossamer.accelerator.quantize.weights import Precision, quantize_rows


def twin(model: FloatModel, scales: dict[str, Scales], precision: Precision) -> Callable[[Example], Tensor]:
    """Example → logits of the fake-quantised model."""
    rounded = FloatModel({name: _rounded(stack, precision) for name, stack in model.stacks.items()}, model.wiring)
    looks = {name: rounding(stack, scales[name]) for name, stack in model.stacks.items()}
    return lambda example: without_gradients(rounded, example, looks)


def _rounded(stack: Stack, precision: Precision) -> Stack:
    """The stack with all weights on their grids: the blocks' by `precision`, others in 8 bits."""
    blocks = tuple(_with_linears(block, precision) for block in stack.blocks)
    projector = tuple((_on_grid(layer, Precision()), act) for layer, act in stack.projector)
    rest: dict[str, Any] = {
        name: _on_grid(layer, Precision()) for name in ("patch", "head") if (layer := getattr(stack, name)) is not None
    }
    return replace(stack, blocks=blocks, projector=projector, **rest)


def _with_linears(part: Any, precision: Precision) -> Any:
    changed = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Linear):
            changed[field.name] = _on_grid(value, precision)
        elif is_dataclass(value):
            changed[field.name] = _with_linears(value, precision)
    return replace(part, **changed)


def _on_grid(layer: Linear, precision: Precision) -> Linear:
    return Linear(quantize_rows(layer.weight, precision).values().float(), layer.bias)
