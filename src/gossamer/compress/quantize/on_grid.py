"""What every quantiser is told."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from gossamer.compress.passes import Phase, Quantized
from gossamer.compress.quantize.grid import Grid
from gossamer.compress.statistics import Statistics
from gossamer.models.number_formats import Format
from gossamer.models.packed import QuantizedTensor, Scheme


@dataclass(frozen=True)
class OnGrid:
    """`bits` 2 to 8, `group` columns for each scale (None: whole rows), a zero point (not `symmetric`) or none.

    Raises `PlanError` outside those ranges.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True

    phase: ClassVar[Phase] = "quantise"

    def __post_init__(self) -> None:
        _ = self.scheme

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` if a weight of this shape does not fit: the group must divide the columns."""
        self.scheme.groups(columns)

    @property
    def scheme(self) -> Scheme:
        """The grid's kind."""
        return Scheme(self.bits, self.group, self.symmetric)

    def nearest(self, weight: Tensor, grid: Grid, statistics: Statistics | None) -> Quantized:
        """`weight` (rows, columns) rounded to the nearest points of `grid`."""
        return Quantized(weight, QuantizedTensor.encode(weight, self.scheme, grid.scales, grid.zeros), statistics)


@dataclass(frozen=True)
class InFormat(OnGrid):
    """`format` says what codes stand for: whole numbers, or floats of few bits, whose bits and group are given with it
    all the same (`fp8`: 8 bits, no group; `mxfp4`: 4 bits, group 32; `nvfp4`: 4 bits, group 16).

    Raises `PlanError` where they contradict each other.
    """

    format: Format = field(default="int", kw_only=True)

    @property
    def scheme(self) -> Scheme:
        """The grid's kind."""
        return Scheme(self.bits, self.group, self.symmetric, self.format)
