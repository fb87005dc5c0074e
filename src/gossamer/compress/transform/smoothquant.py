"""SmoothQuant: part of the inputs' outliers moves into the weights (arXiv 2211.10438)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from gossamer.compress.links import columns_of
from gossamer.compress.passes import Aim, Phase
from gossamer.compress.scaling import Reader, fold_scales
from gossamer.core.errors import DataError
from gossamer.core.progress import SILENT
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.inputs import InputGrid
from gossamer.models.number_formats import FLOATS
from gossamer.models.packed import Scheme

_LEAST = 1e-5  # no factor below this, nor above its inverse
_ALPHAS = torch.linspace(0, 1, 21).tolist()
_STEPS, _RATE = 40, 0.05


@technique("smoothquant")
@dataclass(frozen=True)
class SmoothQuant:
    """Input columns times factors, and the inverse in what writes the inputs, so that rounding both loses less.

    With `alpha` in [0, 1] the factors are the paper's, s_j = max|x_j|^α / max|w_j|^(1-α): it says how much of the
    difficulty moves from inputs to weights, at 0.5 both have the same largest values afterwards. Without one they are
    learnt for all that reads one input together, from the best of 21 `alpha` on, by descent on the squared output error
    that grids of these spans make on a sample of tokens (see `_noise`); grids that the plan does not settle are of 8
    bits. With `everywhere` what linear layers read from each other (v and o, up and down) is smoothed too, without, as
    in the paper, only what norms write. Raises `ValueError` for an `alpha` outside its range.
    """

    alpha: float | None = None
    everywhere: bool = True
    phase: ClassVar[Phase] = "transform"

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha cannot be {self.alpha:g}: it is a share between 0 and 1")

    def transform(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        layers: Sequence[Layer],
        batches: Sequence[Batch],
        aims: Mapping[str, Aim],
    ) -> tuple[str, ...]:
        """See `compress.passes.Transform`. Raises `DataError` without calibration data."""
        if not batches:
            raise DataError("smoothquant needs calibration data: the largest inputs of each layer come from it")
        smoothing = Smoothing(self.alpha, aims)
        wanted = {layer.path: smoothing for layer in layers if layer.kind == "linear"}
        walk = Walk(model, hierarchy, batches[0].inputs)
        left = fold_scales(model, hierarchy, walk, batches, wanted, SILENT, norms_only=not self.everywhere)
        return tuple(f"{path}: nothing before it can make up for scales; not smoothed" for path in left)


@dataclass(frozen=True, eq=False)
class Smoothing:
    """The factors of `SmoothQuant` for layers that are rounded as `aims` say."""

    alpha: float | None = None
    aims: Mapping[str, Aim] = field(default_factory=dict)

    def scales(self, readers: Sequence[Reader], channels: int) -> Tensor | None:
        """See `compress.scaling.Scaling`. Channels without inputs or weights keep the factor 1."""
        inputs, size = readers[0].weight.new_zeros(2, channels)
        for reader in readers:
            assert reader.statistics.largest is not None
            read = reader.source >= 0
            inputs.scatter_reduce_(0, reader.source[read], reader.statistics.largest[read], "amax")
            size.scatter_reduce_(0, reader.source[read], reader.weight.abs().amax(0)[read], "amax")
        used = (inputs > 0) & (size > 0)

        def by_formula(alpha: float) -> Tensor:
            factors = torch.where(used, inputs**alpha / size ** (1 - alpha), 1.0)
            return factors.clamp(_LEAST, 1 / _LEAST)

        if self.alpha is not None:
            return by_formula(self.alpha)

        def loss(factors: Tensor) -> Tensor:
            aims = (self.aims.get(reader.path, Aim(None, None)) for reader in readers)
            return torch.stack([modelled_error(*each, factors) for each in zip(readers, aims, strict=True)]).sum()

        starts = [torch.ones_like(inputs), *map(by_formula, _ALPHAS)]
        return _learnt(loss, min(starts, key=lambda factors: float(loss(factors))), used)


def modelled_error(reader: Reader, aim: Aim, factors: Tensor) -> Tensor:
    """The squared output error for a token, summed over outputs and but for a constant, of scaled inputs and weights
    that lie on grids."""
    known = reader.statistics
    assert known.sample is not None
    columns = columns_of(factors, reader.source)
    inputs, weight = known.sample / columns, reader.weight * columns
    scheme, grid = aim.weight or Scheme(8), aim.inputs or InputGrid()
    group = FLOATS[grid.format].group if grid.format != "int" else None
    of_inputs = _noise(inputs, weight.square().sum(0), group, grid.bits) / len(inputs)
    return of_inputs + _noise(weight, known.hessian.diagonal() / columns.square(), scheme.group, scheme.bits)


def _noise(values: Tensor, met: Tensor, group: int | None, bits: int) -> Tensor:
    """The squared error, up to the same constant for all, that rounding `values` (rows, columns) makes in products with
    numbers whose squares sum up to `met` (columns,): a grid's step goes with the largest value of each row, or of each
    `group` of its columns, and the error is spread evenly over the step."""
    groups = values.shape[1] // group if group and values.shape[1] % group == 0 else 1
    steps = values.abs().reshape(len(values), groups, -1).amax(-1) / (2**bits - 1)
    return (steps.square().sum(0) * met.reshape(groups, -1).sum(-1)).sum()


def _learnt(loss_of: Callable[[Tensor], Tensor], start: Tensor, used: Tensor) -> Tensor:
    """The best factors on a way downhill from `start`."""
    best, least = start, float(loss_of(start))
    logarithms = start.log().requires_grad_()
    descent = torch.optim.Adam([logarithms], lr=_RATE)
    for _ in range(_STEPS):
        with torch.enable_grad():
            loss = loss_of(torch.where(used, logarithms.exp(), 1.0))
        if float(loss.detach()) < least:
            best, least = torch.where(used, logarithms.detach().exp(), 1.0), float(loss.detach())
        (logarithms.grad,) = torch.autograd.grad(loss, logarithms)
        descent.step()
    return best.clamp(_LEAST, 1 / _LEAST)
