"""Learnt masks: which units a model can do without is found by gradients on all of them together.

Hard-concrete gates (arXiv 1712.01312) on what each unit hands on, held to the wanted share of open ones by Lagrange
multipliers, as in Sheared LLaMA (arXiv 2310.06694); the weights themselves stay as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.compress.distill.lessons import Prediction
from gossamer.compress.structure.outputs import log_probs_of
from gossamer.core.errors import ModelError
from gossamer.data.batch import Batch
from gossamer.models.surgery import Units

BETA, LEAST, MOST = 2 / 3, -0.1, 1.1
"""The gates' temperature, and the interval that they are stretched to before what lies outside [0, 1] is cut off."""

OPEN = 2.5
"""Where the gates' parameters start: nearly all open."""

RATE = 0.1
"""Adam's, for gates and multipliers."""

WARM_UP = 0.5
"""Share of the steps in which the wanted share of open gates falls from 1 to its aim."""

TOP_K = 512
"""Classes of the unchanged model's predictions that are told apart."""


def learned(
    model: nn.Module, units: Units, batches: Sequence[Batch], share: float, steps: int, seed: int
) -> dict[str, Tensor]:
    """Block path → a parameter (units,), float32, for each unit's gate: the higher, the more the model hangs on it.

    `share` in (0, 1) of each block's gates shall be open in the end. Each of `steps` takes one of `batches`, whose loss
    is KL(unchanged ‖ gated), and `seed` draws the gates. Time: about three forward passes for each step.
    """
    draw = torch.Generator().manual_seed(seed)
    lessons: list[Prediction | None] = [None] * len(batches)
    gates = {path: torch.full((units.count,), OPEN, requires_grad=True) for path in units.parts}
    pulls = {path: torch.zeros(2, requires_grad=True) for path in units.parts}
    down = torch.optim.Adam([*gates.values()], lr=RATE)
    up = torch.optim.Adam([*pulls.values()], lr=RATE, maximize=True)
    order: list[int] = []
    for step in range(1, steps + 1):
        order = order or torch.randperm(len(batches), generator=draw).tolist()
        number = order.pop()
        lesson = lessons[number] or Prediction.of(model, batches[number], log_probs_of, TOP_K, 1.0, False)
        lessons[number] = lesson
        aim = 1 - (1 - share) * min(1.0, step / (WARM_UP * steps))
        with torch.enable_grad():
            opened = {path: _sampled(gate, draw) for path, gate in gates.items()}
            with gated(model, units, opened):
                loss = lesson.losses(model).mean()
            for path, gate in gates.items():
                excess = _chance(gate).mean() - aim
                loss = loss + pulls[path][0] * excess + pulls[path][1] * excess.square()
            slopes = torch.autograd.grad(loss, [*gates.values(), *pulls.values()])
        for parameter, slope in zip([*gates.values(), *pulls.values()], slopes, strict=True):
            parameter.grad = slope
        down.step()
        up.step()
    return {path: gate.detach() for path, gate in gates.items()}


@contextmanager
def gated(model: nn.Module, units: Units, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, what each unit hands on is multiplied by its gate, by block path (units,)."""

    def hook(factors: Tensor) -> Any:
        return lambda _module, args: (args[0] * factors.to(args[0].device, args[0].dtype), *args[1:])

    with ExitStack() as stack:
        for path, gate in gates.items():
            layer, columns = units.readers[path], units.columns(path)
            if columns.numel() != layer.columns:
                raise ModelError(f"{layer.path} reads more than the units of its block: their masks cannot be learnt")
            factors = gate.repeat_interleave(columns.shape[1])[columns.flatten().argsort()]
            stack.callback(model.get_submodule(layer.module).register_forward_pre_hook(hook(factors)).remove)
        yield


def _sampled(gate: Tensor, draw: torch.Generator) -> Tensor:
    """Gates in [0, 1] drawn from the hard-concrete distributions with these parameters, with gradients."""
    noise = torch.rand(gate.shape, generator=draw).clamp(1e-6, 1 - 1e-6).logit()
    return (torch.sigmoid((noise + gate) / BETA) * (MOST - LEAST) + LEAST).clamp(0, 1)


def _chance(gate: Tensor) -> Tensor:
    """The chance that each gate is not 0."""
    return torch.sigmoid(gate - BETA * log(-LEAST / MOST))
