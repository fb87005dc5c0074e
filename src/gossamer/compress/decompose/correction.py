"""Making up for part of an error by a matrix of low rank (LQER, arXiv 2402.02446; EoRA, arXiv 2410.21271)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gossamer.compress.decompose.truncate import check_rank, truncate
from gossamer.compress.factor import check_damping
from gossamer.compress.passes import Needs, Phase, usable
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique
from gossamer.models.low_rank import LowRank


@technique("correction")
@dataclass(frozen=True)
class Correction:
    """Adds the part of the error that costs most on the layer's inputs, `rank` directions of it, at 16 bits.

    `damping` as in `truncate`. Raises `ValueError` for a rank below 1 or damping outside (0, 1].
    """

    rank: int = 16
    damping: float = 0.01

    phase: ClassVar[Phase] = "correct"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank cannot be {self.rank}: it is at least 1")
        check_damping(self.damping)

    @property
    def needs(self) -> Needs:
        """The inputs: without statistics all columns count alike."""
        return "inputs"

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` if a weight of this shape has no such rank."""
        check_rank(self.rank, rows, columns)

    def correct(self, error: Tensor, statistics: Statistics | None) -> LowRank:
        """What to add to a weight that is off by `error` (rows, columns).

        Raises `PlanError` for a rank beyond the smaller side, `ModelError` for errors or Hessians that are not finite.
        """
        return truncate(usable(error), self.rank, statistics, self.damping)
