"""Magnitude pruning: the smallest weights go (arXiv 1506.02626)."""

from dataclasses import dataclass

from torch import Tensor

from gossamer.compress.passes import Needs, Sparse, usable
from gossamer.compress.prune.to_sparsity import ToSparsity, pruned
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique


@technique("magnitude")
@dataclass(frozen=True)
class Magnitude(ToSparsity):
    """Removes the smallest |w|, compared within the whole matrix, or within each group of a pattern."""

    @property
    def needs(self) -> Needs:
        """Nothing: it works without data."""
        return "nothing"

    def sparsify(self, weight: Tensor, statistics: Statistics | None) -> Sparse:
        """The pruned `weight` (rows, columns). Raises `PlanError` if the pattern does not divide the columns."""
        weight = usable(weight)
        scores, _ = self.scores(weight, statistics)
        compared = scores if self.groups else scores.reshape(1, -1)
        return pruned(weight, weight, self.keep(compared).reshape(weight.shape), statistics)

    def scores(self, weight: Tensor, statistics: Statistics | None) -> tuple[Tensor, tuple[str, ...]]:
        """How much each weight matters, (rows, columns) from 0, and what is to be noted: nothing."""
        return weight.abs(), ()
