"""Rounding what layers compute with, beside their weights: W8A8, W4A8, FP8, MXFP4, NVFP4."""

from dataclasses import dataclass
from typing import ClassVar

from gossamer.compress.passes import Needs, Phase
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import PlanError
from gossamer.core.technique import technique
from gossamer.models.inputs import InputGrid
from gossamer.models.number_formats import FLOATS, Format


@technique("activations")
@dataclass(frozen=True)
class Activations:
    """A layer's inputs go to the nearest numbers of a few bits, symmetrically about 0.

    `format` says what these numbers are, `bits` how many they have (whole numbers 4 to 8, `fp8` 8, `mxfp4` and `nvfp4`
    4). With `dynamic` the scale is found anew for each token; without, it is one for all, which keeps the largest
    magnitude of the calibration inputs. `mxfp4` and `nvfp4` are always dynamic within groups of a token; `nvfp4` takes
    the factor for all of them from calibration. Raises `ValueError` outside those ranges.
    """

    format: Format = "int"
    bits: int = 8
    dynamic: bool = True

    phase: ClassVar[Phase] = "activations"

    def __post_init__(self) -> None:
        allowed = range(4, 9) if self.format == "int" else [FLOATS[self.format].bits]
        if self.bits not in allowed:
            raise ValueError(f"bits cannot be {self.bits}: {self.format} takes {', '.join(map(str, allowed))}")
        if not self.dynamic and self._group is not None:
            raise ValueError(
                f"dynamic cannot be off: {self.format} finds the scales of each token's groups as they come"
            )

    @property
    def _group(self) -> int | None:
        return FLOATS[self.format].group if self.format != "int" else None

    @property
    def needs(self) -> Needs:
        """The inputs, where something is settled beforehand."""
        return "nothing" if self.dynamic and self.format != "nvfp4" else "inputs"

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` if the format's group does not divide the columns."""
        if self._group is not None and columns % self._group:
            raise PlanError(f"{self.format} takes columns in groups of {self._group}, this layer has {columns}")

    def grid(self, statistics: Statistics | None) -> InputGrid | None:
        """How inputs with these statistics are to be rounded; None where there are none that settle a scale."""
        if self.needs == "nothing":
            return InputGrid(self.format, self.bits)
        largest = 0.0 if statistics is None or statistics.largest is None else float(statistics.largest.max())
        return InputGrid.spanning(largest, self.format, self.bits) if largest > 0 else None
