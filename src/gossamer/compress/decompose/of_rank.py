"""What every decomposer is told."""

from dataclasses import dataclass
from typing import ClassVar

from gossamer.compress.decompose.truncate import check_rank
from gossamer.compress.factor import check_damping
from gossamer.compress.passes import Needs, Phase
from gossamer.core.errors import PlanError


@dataclass(frozen=True)
class OfRank:
    """How large the matrix of low rank is: its `rank`, from 1, or the `ratio`, in (0, 1], of its two factors' bytes to
    those of the weight at 16 bits; exactly one of the two. `damping` as in `truncate`.

    Raises `ValueError` outside those ranges.
    """

    rank: int | None = None
    ratio: float | None = None
    damping: float = 0.01

    phase: ClassVar[Phase] = "decompose"

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.ratio is None):
            raise ValueError("it takes either a rank or a ratio")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank cannot be {self.rank}: it is at least 1")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio cannot be {self.ratio}: it is above 0 and at most 1")
        check_damping(self.damping)

    @property
    def needs(self) -> Needs:
        """The inputs: without statistics all columns count alike."""
        return "inputs"

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` if a weight of this shape has no such rank."""
        check_rank(self.rank_for(rows, columns), rows, columns)

    def rank_for(self, rows: int, columns: int) -> int:
        """The rank for a weight of this shape. Raises `PlanError` where the ratio leaves room for none."""
        if self.rank is not None:
            return self.rank
        assert self.ratio is not None
        rank = int(self.ratio * rows * columns / (rows + columns))
        if rank == 0:
            least = (rows + columns) / (rows * columns)
            raise PlanError(
                f"ratio {self.ratio:g} leaves no room for factors of a matrix of {rows} x {columns}: "
                f"they take {least:.3g} of its bytes at least"
            )
        return rank
