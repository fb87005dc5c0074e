"""AWQ: columns that matter are scaled up before rounding, and their inputs down (arXiv 2306.00978)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossamer.compress.links import columns_of
from gossamer.compress.passes import Needs, Quantized, usable
from gossamer.compress.quantize.gptq import Gptq
from gossamer.compress.quantize.grid import fit_grid
from gossamer.compress.quantize.on_grid import OnGrid
from gossamer.compress.scaling import Reader
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique
from gossamer.models.packed import QuantizedTensor


@technique("awq")
@dataclass(frozen=True)
class Awq(OnGrid):
    """Scales s_j = x_j^α / w_j^(1-α), the best of a grid of α, then rounds.

    x_j is the root mean square of input j, w_j the mean of the column's magnitudes as shares of their group's largest.
    α runs over [0, 1] in `steps` steps; what counts is the squared output error of all layers that read the input, with
    plain rounding, and no scaling is always among the candidates. `rounding`: `nearest`, with scales found by weighing
    columns by their inputs' power, or `gptq`. `bits`, `group` and `symmetric` are the grid's. Raises `ValueError` for
    fewer than 2 steps.
    """

    steps: int = 20
    rounding: Literal["nearest", "gptq"] = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2:
            raise ValueError(f"steps cannot be {self.steps}: the grid has at least 2")

    @property
    def needs(self) -> Needs:
        """The inputs: scales come from them."""
        return "inputs"

    def scales(self, readers: Sequence[Reader], channels: int) -> Tensor | None:
        """See `compress.scaling.Scaling`."""
        sources = [reader.source for reader in readers]
        power = _by_channel([reader.statistics.hessian.diagonal() for reader in readers], sources, channels)
        share = _by_channel([self._shares(reader.weight) for reader in readers], sources, channels)
        size = power.sqrt().clamp_min(1e-3 * float(power.mean().sqrt()) or 1.0)
        best, least = None, sum(self._loss(reader, torch.ones_like(power)) for reader in readers)
        for alpha in torch.linspace(0, 1, self.steps).tolist():
            factors = (size**alpha / (share ** (1 - alpha) + 1e-4)).clamp_min(1e-4)
            factors = factors / (factors.max() * factors.min()).sqrt()
            loss = sum(self._loss(reader, factors) for reader in readers)
            if loss < least:
                best, least = factors, loss
        return best

    def _shares(self, weight: Tensor) -> Tensor:
        """(columns,): the mean over rows of each magnitude as a share of the largest of its group."""
        grouped = weight.abs().reshape(len(weight), self.scheme.groups(weight.shape[1]), -1)
        return (grouped / grouped.amax(-1, keepdim=True).clamp_min(1e-12)).reshape(weight.shape).mean(0)

    def _loss(self, reader: Reader, channel_factors: Tensor) -> float:
        factors = columns_of(channel_factors, reader.source)
        scaled = reader.weight * factors
        grid = fit_grid(scaled, self.scheme, "none")
        rounded = QuantizedTensor.encode(scaled, self.scheme, grid.scales, grid.zeros).dequantize()
        return reader.statistics.loss(rounded / factors - reader.weight)

    def quantize(self, weight: Tensor, statistics: Statistics | None, mask: Tensor | None = None) -> Quantized:
        """The quantised form of the (already scaled) `weight` (rows, columns). Raises as `Gptq.quantize` does."""
        if self.rounding == "gptq":
            return Gptq(self.bits, self.group, self.symmetric).quantize(weight, statistics, mask)
        weight = usable(weight)
        costs = None
        if statistics is not None:
            power = statistics.hessian.diagonal()
            costs = power / power.mean().clamp_min(torch.finfo(torch.float32).tiny)
        grid = fit_grid(weight, self.scheme, "mse", costs)
        return self.nearest(weight, grid, statistics)


def _by_channel(values: Sequence[Tensor], sources: Sequence[Tensor], channels: int) -> Tensor:
    """Means (channels,) of values that are given by column; 1 for channels that no column reads."""
    total, count = values[0].new_zeros(2, channels, dtype=torch.float32)
    for value, source in zip(values, sources, strict=True):
        read = source >= 0
        total.index_add_(0, source[read], value[read].float())
        count.index_add_(0, source[read], total.new_ones(int(read.sum())))
    return torch.where(count > 0, total / count.clamp_min(1), 1.0)
