"""Round to nearest: the baseline that needs no data."""

from dataclasses import dataclass

from torch import Tensor

from gossamer.compress.passes import Needs, Quantized, usable
from gossamer.compress.quantize.grid import Clip, fit_grid
from gossamer.compress.quantize.on_grid import InFormat
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique


@technique("rtn")
@dataclass(frozen=True)
class RoundToNearest(InFormat):
    """Every weight goes to the nearest point of its group's grid.

    `bits` 2 to 8; `group` columns for each scale, None for whole rows; `clip` says how the grid's range is found (see
    `fit_grid`), `percentile` in (50, 100] only counts for `clip: percentile`. Raises `ValueError` outside those ranges.
    """

    clip: Clip = "mse"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile cannot be {self.percentile}: it is above 50 and at most 100")

    @property
    def needs(self) -> Needs:
        """Nothing: statistics only serve to report the loss."""
        return "nothing"

    def quantize(self, weight: Tensor, statistics: Statistics | None, mask: Tensor | None = None) -> Quantized:
        """The rounded form of `weight` (rows, columns); zeros stay zeros, whatever the `mask`.

        Raises `PlanError` if the group does not divide the columns, `ModelError` for weights that are not finite.
        """
        weight = usable(weight)
        grid = fit_grid(weight, self.scheme, self.clip, percentile=self.percentile)
        return self.nearest(weight, grid, statistics)
