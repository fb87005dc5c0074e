"""OmniQuant: how far each group's grid reaches, learnt on a block's output (arXiv 2308.13137)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gossamer.compress.passes import BlockRun, Needs, Place, Quantized, Rounded, usable
from gossamer.compress.quantize.blockwise import learn, passing_round, unknowns_of
from gossamer.compress.quantize.grid import fit_grid
from gossamer.compress.quantize.on_grid import OnGrid
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique
from gossamer.models.number_formats import allowed_scales
from gossamer.models.packed import QuantizedTensor, Scheme

WIDEST = 4.0
"""The unknown of an end that cuts nothing, the paper's own start: its sigmoid is 98 % of how far the end can reach."""


@technique("omniquant")
@dataclass(frozen=True)
class OmniQuant(OnGrid):
    """Rounds to nearest; then both ends of every group's grid move inside the span of its weights.

    The ends are sigmoids of unknowns times the least and the greatest weight (one unknown on symmetric grids), learnt
    for all layers of a block together by `iterations` steps of AdamW at `rate` on the mean squared difference to the
    unchanged model's output (see `learn`); rounding lets gradients pass (straight-through). The paper starts where
    nothing is cut, here they start where the squared error of the weights is least. The paper's second part, scales and
    shifts moved between norms and layers, is `learned_scales`, a transform to go before. Raises `ValueError` for fewer
    than 1 iteration, and for a rate that is not positive.
    """

    iterations: int = 200
    rate: float = 5e-3

    keeps_zeros: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations cannot be {self.iterations}: there is at least 1")
        if not self.rate > 0:
            raise ValueError(f"rate cannot be {self.rate}: it is above 0")

    @property
    def needs(self) -> Needs:
        """Both models: what is learnt is the unchanged model's output from the changed model's input."""
        return "both models"

    def quantize(self, weight: Tensor, statistics: Statistics | None, mask: Tensor | None = None) -> Quantized:
        """`weight` (rows, columns) rounded to nearest, where `polish` starts; zeros stay zeros, whatever the `mask`.

        Raises `PlanError` if the group does not divide the columns, `ModelError` for weights that are not finite.
        """
        weight = usable(weight)
        grid = fit_grid(weight, self.scheme, "mse")
        return self.nearest(weight, grid, statistics)

    def polish(
        self, block: nn.Module, layers: Mapping[Place, Rounded], runs: Sequence[BlockRun]
    ) -> dict[Place, QuantizedTensor]:
        """Better roundings of the block's layers by their places in it; empty if none was found."""
        learnt = {name: _Clipped.of(layer) for name, layer in layers.items()}
        unknowns = unknowns_of(learnt)
        optimiser = torch.optim.AdamW(unknowns, self.rate, weight_decay=0.0)

        def move(_step: int, slopes: Sequence[Tensor]) -> None:
            for unknown, slope in zip(unknowns, slopes, strict=True):
                unknown.grad = slope
            optimiser.step()

        return learn(block, learnt, runs, self.iterations, move)


@dataclass(frozen=True, eq=False)
class _Clipped:
    """A layer's unknowns: `low` and `high` (rows, groups), of which symmetric grids use `high` for both ends.

    `values` (rows, groups, columns each) are the weights, `least` and `greatest` (rows, groups) the reach of the ends:
    where the sigmoid is 1. On symmetric grids `greatest` has the sign of the scale.
    """

    layer: Rounded
    scheme: Scheme
    values: Tensor
    least: Tensor
    greatest: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, layer: Rounded) -> "_Clipped":
        tensor, scheme = layer.tensor, layer.tensor.scheme
        scales = tensor.scales.float()
        values = layer.weight.reshape(*scales.shape, -1)
        if tensor.zeros is None:
            high_end = scales * (scheme.high - scheme.low) / 2
            low_end, span = -high_end, values.abs().amax(-1) * scales.sign()
            least, greatest = -span, span
        else:
            low_end, high_end = ((end - tensor.zeros.float()) * scales for end in (scheme.low, scheme.high))
            least, greatest = values.amin(-1), values.amax(-1)
        low, least = _unsquashed(low_end, least)
        high, greatest = _unsquashed(high_end, greatest)
        return cls(layer, scheme, values, least, greatest, low, high)

    @property
    def unknowns(self) -> tuple[Tensor, ...]:
        return (self.high,) if self.scheme.symmetric else (self.low, self.high)

    def grid(self) -> tuple[Tensor, Tensor | None]:
        """Scales and zero points (rows, groups)."""
        high = self.greatest * self.high.sigmoid()
        low = -high if self.scheme.symmetric else self.least * self.low.sigmoid()
        scales = (high - low) / (self.scheme.high - self.scheme.low)
        if self.scheme.symmetric:
            return scales, None
        return scales, passing_round(self.scheme.low - low / scales).clamp(self.scheme.low, self.scheme.high)

    def soft(self) -> Tensor:
        """The rounded weight (rows, columns), with gradients as if it had not been rounded."""
        scales, zeros = self.grid()
        scales, offset = scales.unsqueeze(-1), 0.0 if zeros is None else zeros.unsqueeze(-1)
        codes = (passing_round(self.values / scales) + offset).clamp(self.scheme.low, self.scheme.high)
        return ((codes - offset) * scales).reshape(self.layer.weight.shape)

    @torch.no_grad()
    def hard(self) -> QuantizedTensor:
        """The layer on its final grid, scales rounded to 16 bits."""
        scales, zeros = self.grid()
        weight = self.layer.weight.reshape(self.layer.tensor.shape)
        return QuantizedTensor.encode(weight, self.scheme, allowed_scales(scales).half(), zeros)


def _unsquashed(end: Tensor, extreme: Tensor) -> tuple[Tensor, Tensor]:
    """The unknown of an end that stands at `end`, and its reach: beyond the `extreme` weight as `WIDEST` says.

    Rounded zero points can put an end beyond the extreme weight; it can reach further then.
    """
    widest = end.new_tensor(WIDEST).sigmoid()
    reach = torch.where(end.abs() > extreme.abs(), end, extreme) / widest
    share = torch.where(reach == 0, widest, end / reach).clamp(1 - widest, widest)
    return torch.logit(share).requires_grad_(), reach
