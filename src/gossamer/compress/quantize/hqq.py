"""HQQ: grids that leave few large errors, found without data (https://mobiusml.github.io/hqq_blog)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.compress.passes import Needs, Quantized, usable
from gossamer.compress.quantize.grid import Grid, fit_grid
from gossamer.compress.quantize.on_grid import OnGrid
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique
from gossamer.models.number_formats import allowed_scales
from gossamer.models.packed import Scheme

POWER, SQUARE = 0.7, 2.0
"""Powers of errors that are summed: below 1, a few large errors cost less than many of middling size."""

BETA, GROWTH = 10.0, 1.01
"""The weight that ties the split errors to the true ones at the start, in squared steps, and its growth in a turn."""


@technique("hqq")
@dataclass(frozen=True)
class Hqq(OnGrid):
    """Rounds to nearest on a grid for which Σ |W - Ŵ|^`power` is small, by half-quadratic splitting.

    In each of at most `iterations` turns large errors E are split off by a shrinkage, and the grid is fitted to W - E
    by least squares; it ends when the errors grow. Each group keeps the grid whose errors are least, as stored.
    The authors fit real-valued zero points and leave the scales. Here stored zero points are integers, which hardly
    ever move alone, and symmetric grids have none: so scales are fitted in the same way, after the zero points.
    `power` is above 0 and at most 1, or 2, for which nothing is split off. By default it is the authors' 0.7 where
    there are zero points, and 2 on symmetric grids, on which giving up large errors loses more in every model that was
    tried. Raises `ValueError` for another power, or fewer than 1 iteration.
    """

    iterations: int = 20
    power: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations cannot be {self.iterations}: there is at least 1")
        if self.power is not None and not 0 < self.power <= 1 and self.power != SQUARE:
            raise ValueError(f"power cannot be {self.power:g}: it is above 0 and at most 1, or 2")

    @property
    def needs(self) -> Needs:
        """Nothing: statistics only serve to report the loss."""
        return "nothing"

    def quantize(self, weight: Tensor, statistics: Statistics | None, mask: Tensor | None = None) -> Quantized:
        """The rounded form of `weight` (rows, columns); zeros stay zeros, whatever the `mask`.

        Raises `PlanError` if the group does not divide the columns, `ModelError` for weights that are not finite.
        """
        weight = usable(weight)
        power = self.power or (SQUARE if self.symmetric else POWER)
        grid = half_quadratic(weight, self.scheme, fit_grid(weight, self.scheme, "mse"), self.iterations, power)
        return self.nearest(weight, grid, statistics)


def half_quadratic(weight: Tensor, scheme: Scheme, start: Grid, iterations: int, power: float = POWER) -> Grid:
    """The best grid on the way from `start` for `weight` float32 (rows, columns): none of its groups does worse."""
    values = weight.reshape(*start.scales.shape, -1)
    best_scales = scales = start.scales.float()
    best_zeros = zeros = torch.zeros_like(scales) if start.zeros is None else start.zeros.float()
    best = before = lp_errors(values, scales, zeros, scheme, power)
    beta = BETA
    for _ in range(iterations):
        steps = values / scales.unsqueeze(-1)
        codes = _codes(steps, zeros, scheme)
        error = steps - (codes - zeros.unsqueeze(-1))
        if power < SQUARE:
            steps -= error.sign() * (error.abs() - error.abs().pow(power - 1) / beta).clamp_min(0)
        if not scheme.symmetric:
            zeros = (codes - steps).mean(-1).round().clamp(scheme.low, scheme.high)
        codes -= zeros.unsqueeze(-1)
        factors = (steps * codes).sum(-1) / codes.square().sum(-1)
        scales = torch.where(factors > 0, allowed_scales(scales * factors), scales)
        now = lp_errors(values, scales, zeros, scheme, power)
        better = now < best
        best_scales, best_zeros = torch.where(better, scales, best_scales), torch.where(better, zeros, best_zeros)
        best = torch.minimum(now, best)
        if float(now.sum()) >= float(before.sum()):
            break
        before, beta = now, beta * GROWTH
    return Grid(best_scales.half(), None if start.zeros is None else best_zeros.to(torch.int8))


def lp_errors(values: Tensor, scales: Tensor, zeros: Tensor, scheme: Scheme, power: float) -> Tensor:
    """Σ |W - Ŵ|^`power` of each group (rows, groups) of `values` (rows, groups, columns each), rounded to nearest."""
    codes = _codes(values / scales.unsqueeze(-1), zeros, scheme)
    return (values - (codes - zeros.unsqueeze(-1)) * scales.unsqueeze(-1)).abs().pow(power).sum(-1)


def _codes(steps: Tensor, zeros: Tensor, scheme: Scheme) -> Tensor:
    return (steps.round() + zeros.unsqueeze(-1)).clamp(scheme.low, scheme.high)
