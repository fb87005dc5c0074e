"""How much each channel or head group matters, from its weights alone or from their gradients (arXiv 2305.11627).

Masks that learn it are next door.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from gossamer.compress.structure.outputs import loss_of
from gossamer.data.batch import Batch
from gossamer.models.surgery import Units

OfWeights = Literal["magnitude", "taylor", "taylor2"]


def importance(model: nn.Module, units: Units, kind: OfWeights, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Block path → the importance (units,), float32, of its units: the sum over all weights that make one up.

    `magnitude`: w². `taylor`: |w g|, g the mean gradient over `batches`: what the loss changes to first order when w
    becomes 0. `taylor2`: |w g - ½ w² F| with the curvature F = mean g² (the diagonal of the empirical Fisher matrix,
    each batch a sample). The loss is that of `loss_of`.
    """
    names = sorted({part.tensor for parts in units.parts.values() for part in parts})
    weights = {name: model.get_parameter(name).detach().float() for name in names}
    if kind == "magnitude":
        scores = {name: weight.square() for name, weight in weights.items()}
    else:
        slopes, curvatures = _gradients(model, names, batches)
        scores = {name: weight * slopes[name] for name, weight in weights.items()}
        if kind == "taylor2":
            scores = {name: scores[name] - weights[name].square() * curvatures[name] / 2 for name in names}
        scores = {name: score.abs() for name, score in scores.items()}

    def along(name: str, dim: int) -> Tensor:
        score = scores[name]
        return score.movedim(dim, 0).reshape(score.shape[dim], -1).sum(1).cpu()

    return {
        path: sum((along(part.tensor, part.dim)[part.positions].sum(1) for part in parts), torch.zeros(units.count))
        for path, parts in units.parts.items()
    }


def _gradients(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Name → the mean gradient and the mean squared gradient of the parameter, over batches."""
    parameters = [model.get_parameter(name) for name in names]
    slopes, curvatures = (
        {name: torch.zeros_like(one, dtype=torch.float32) for name, one in zip(names, parameters, strict=True)}
        for _ in range(2)
    )
    with _differentiable(parameters):
        for batch in batches:
            found = torch.autograd.grad(loss_of(model, batch), parameters, allow_unused=True)
            for name, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    slopes[name] += gradient.float() / len(batches)
                    curvatures[name] += gradient.float().square() / len(batches)
    return slopes, curvatures


@contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients of these parameters can be taken."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter, wanted in zip(parameters, before, strict=True):
            parameter.requires_grad_(wanted)
