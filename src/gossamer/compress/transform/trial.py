"""The proof by trial that a model computes what it computed, and its ties while weights change."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.errors import PlanError
from gossamer.engine.forward import forward


def results(output: Any) -> list[Tensor]:
    """The tensors of a model's output that tell what it computes; hidden states only where there is nothing else."""
    if isinstance(output, Tensor):
        return [output]
    named = output.items() if isinstance(output, Mapping) else enumerate(output)
    found = {str(name): value for name, value in named if isinstance(value, Tensor) and value.is_floating_point()}
    return [value for name, value in found.items() if "hidden_state" not in name] or list(found.values())


def change(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest difference, as a share of the largest value of its tensor; NaN counts as infinite."""
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        share = float((new - old).abs().max() / old.abs().max().clamp_min(1e-30))
        worst = max(worst, share if share == share else float("inf"))
    return worst


@contextmanager
def preserving(
    model: nn.Module, inputs: Mapping[str, Any], parameters: Iterable[str], tolerance: float, what: str
) -> Iterator[None]:
    """Inside, `parameters` change in a way that keeps the model's function.

    Raises `PlanError` if the output then differs by more than `tolerance`. After any error all are as they were.
    """
    with torch.no_grad():
        before = results(forward(model, inputs))
    values = {name: model.get_parameter(name).detach().clone() for name in parameters}
    try:
        yield
        with torch.no_grad():
            changed = change(before, results(forward(model, inputs)))
        if changed > tolerance:
            raise PlanError(
                f"{what} would change the model's output by {changed:.1e} of its largest value, which is more than "
                f"{tolerance:.0e}: leave it out for this model"
            )
    except BaseException:
        with torch.no_grad():
            for name, value in values.items():
                model.get_parameter(name).copy_(value)
        raise


@contextmanager
def parted(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Inside, every owner of a shared parameter has a copy of its own; those that are equal at the end share again.

    The list holds, once it is over, the names of the pairs that do not.
    """
    first: dict[int, str] = {}
    places: list[tuple[dict[str, Any], str, str, str]] = []
    parted_for_good: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{path}.{name}" if path else name
            if id(parameter) in first:
                places.append((module._parameters, name, full, first[id(parameter)]))
            first.setdefault(id(parameter), full)
    for parameters, name, _, _ in places:
        parameters[name] = nn.Parameter(parameters[name].detach().clone(), requires_grad=False)
    try:
        yield parted_for_good
    finally:
        for parameters, name, full, original in places:
            if torch.equal(parameters[name], model.get_parameter(original)):
                parameters[name] = model.get_parameter(original)
            else:
                parted_for_good.append((original, full))
