"""Learnt masks: which units a model can do without is found by gradients on all of them together.

Hard-concrete gates (arXiv 1712.01312) on what each unit hands on, held to the wanted share of open ones by Lagrange
multipliers, as in Sheared LLaMA (arXiv 2310.06694); the weights themselves stay as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.compress.distill.lessons import Prediction
from gossamer.compress.structure.outputs import log_probs_of
from gossamer.core.errors import DataError, ModelError
from gossamer.data.batch import Batch
from gossamer.models.surgery import Units

BETA, LEAST, MOST = 2 / 3, -0.1, 1.1
"""The gates' temperature, and the interval that they are stretched to before what lies outside [0, 1] is cut off."""

OPEN = 2.5
"""Where the gates' parameters start: nearly all open."""

RATE, MOMENTUM = 0.02, 0.9
"""Gradient descent's on the gates. Gradients are relative to their size in the whole block, not to each gate's own as
Adam's are: how much a unit matters is just what tells it from others."""

STIFFNESS, PULL = 10.0, 1.0
"""What the excess of open gates costs at once, and what it adds to the multiplier with each step, in units of the
gradient's size (the method of multipliers, with its multiplier free of the loss's scale)."""

WARM_UP = 0.5
"""Share of the steps in which the wanted share of open gates falls from 1 to its aim."""

TOP_K = 512
"""Classes of the unchanged model's predictions that are told apart."""


def learned(
    model: nn.Module, units: Units, batches: Sequence[Batch], share: float, steps: int, seed: int
) -> dict[str, Tensor]:
    """Block path → a parameter (units,), float32, for each unit's gate: the higher, the more the model hangs on it.

    `share` in (0, 1) of each block's gates shall be open in the end. Each of `steps` takes one of `batches`, whose loss
    is KL(unchanged ‖ gated), and `seed` draws the gates, for each example anew. Time: about three forward passes for
    each step. Raises `DataError` for data that reaches none of the blocks.
    """
    draw = torch.Generator().manual_seed(seed)
    lessons: list[Prediction | None] = [None] * len(batches)
    gates = {path: torch.full((units.count,), OPEN, requires_grad=True) for path in units.parts}
    multipliers = dict.fromkeys(gates, 0.0)
    descent = torch.optim.SGD([*gates.values()], lr=RATE, momentum=MOMENTUM)
    order: list[int] = []
    for step in range(1, steps + 1):
        order = order or torch.randperm(len(batches), generator=draw).tolist()
        number = order.pop()
        lesson = lessons[number] or Prediction.of(model, batches[number], log_probs_of, TOP_K, 1.0, False)
        lessons[number] = lesson
        with torch.enable_grad(), gated(model, units, lambda path, rows: _sampled(gates[path], rows, draw)):
            loss = lesson.losses(model).mean()
            if not loss.requires_grad:
                raise DataError(f"masks cannot be learnt: the calibration data does not reach {next(iter(gates))}")
            slopes = torch.autograd.grad(loss, [*gates.values()], materialize_grads=True)
        aim = 1 - (1 - share) * min(1.0, step / (WARM_UP * steps))
        for (path, gate), slope in zip(gates.items(), slopes, strict=True):
            opened = chance(gate.detach())
            excess = float(opened.mean()) - aim
            multipliers[path] += PULL * excess
            shut = opened * (1 - opened)  # the slope of the share, up to a factor
            gate.grad = _relative(slope) + (multipliers[path] + STIFFNESS * excess) * _relative(shut)
        descent.step()
    return {path: gate.detach() for path, gate in gates.items()}


@contextmanager
def gated(model: nn.Module, units: Units, gates: Callable[[str, int], Tensor]) -> Iterator[None]:
    """Inside, what each unit hands on is multiplied by its gate: those of a block path are asked for as (rows, units).

    A row is an example where the layer sees examples apart, else all of the batch.
    """

    def hook(path: str, columns: Tensor) -> Callable[..., Any]:
        place = columns.flatten().argsort()

        def gate(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            inputs = args[0]
            rows = len(inputs) if inputs.dim() == 3 else 1
            factors = gates(path, rows).repeat_interleave(columns.shape[1], dim=1)[:, place]
            factors = factors.unsqueeze(1) if inputs.dim() == 3 else factors
            return inputs * factors.to(inputs.device, inputs.dtype), *args[1:]

        return gate

    with ExitStack() as stack:
        for path, layer in units.readers.items():
            columns = units.columns(path)
            if columns.numel() != layer.columns:
                raise ModelError(f"{layer.path} reads more than the units of its block: their masks cannot be learnt")
            module = model.get_submodule(layer.module)
            stack.callback(module.register_forward_pre_hook(hook(path, columns)).remove)
        yield


def _sampled(gate: Tensor, rows: int, draw: torch.Generator) -> Tensor:
    """Gates (rows, units) in [0, 1] from the hard-concrete distributions of these parameters, with gradients."""
    noise = torch.rand(rows, len(gate), generator=draw).clamp(1e-6, 1 - 1e-6).logit()
    return (torch.sigmoid((noise + gate) / BETA) * (MOST - LEAST) + LEAST).clamp(0, 1)


def _relative(slope: Tensor) -> Tensor:
    """The slope in units of its root mean square."""
    return slope / slope.square().mean().sqrt().clamp_min(torch.finfo(slope.dtype).tiny)


def chance(gate: Tensor) -> Tensor:
    """The chance that each gate is not 0."""
    return torch.sigmoid(gate - BETA * log(-LEAST / MOST))
