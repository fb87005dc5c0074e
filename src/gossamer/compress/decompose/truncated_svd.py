"""The activation-aware SVD (SVD-LLM, arXiv 2403.07378; LoRD, arXiv 2309.14021)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gossamer.compress.decompose.of_rank import OfRank
from gossamer.compress.decompose.truncate import remarks, truncate
from gossamer.compress.passes import Decomposed, relative_loss, usable
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique


@technique("low_rank")
@dataclass(frozen=True)
class TruncatedSvd(OfRank):
    """Takes the matrix of low rank that comes closest on the layer's inputs out of the weight.

    `rest` says what becomes of the remainder: `none` drops it, so that the factors are all that is stored; `full`
    leaves it, 16-bit rounding errors of the factors included, to the passes that follow (as SVDQuant, arXiv 2411.05007,
    takes the largest directions out before it quantises).
    """

    rest: Literal["none", "full"] = "none"

    @property
    def leaves_rest(self) -> bool:
        """Whether anything is left to later passes."""
        return self.rest == "full"

    @property
    def leaves_zeros(self) -> bool:
        """A rest is full."""
        return False

    def decompose(self, weight: Tensor, statistics: Statistics | None) -> Decomposed:
        """The parts of `weight` (rows, columns) for inputs with these `statistics`.

        Raises `PlanError` for a rank beyond the smaller side or a ratio too small for any, `ModelError` for weights or
        Hessians that are not finite.
        """
        weight = usable(weight)
        part = truncate(weight, self.rank_for(*weight.shape), statistics, self.damping)
        error = weight - part.dense()
        notes = remarks(statistics, self.damping)
        if self.rest == "full":
            return Decomposed(part, error, None, 0.0, notes)
        return Decomposed(part, None, None, relative_loss(error, weight, statistics), notes)
