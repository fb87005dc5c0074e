"""Wanda: the weights go that move their output least by themselves (arXiv 2306.11695)."""

from dataclasses import dataclass

from torch import Tensor

from gossamer.compress.passes import Needs, Sparse, usable
from gossamer.compress.prune.activity import activity
from gossamer.compress.prune.to_sparsity import ToSparsity, pruned
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique


@technique("wanda")
@dataclass(frozen=True)
class Wanda(ToSparsity):
    """Removes the lowest |w_ij| · ‖x_j‖₂, compared within each row, or within each group of a pattern.

    The weights that stay are not changed.
    """

    @property
    def needs(self) -> Needs:
        """The inputs: without statistics the score is the magnitude."""
        return "inputs"

    def sparsify(self, weight: Tensor, statistics: Statistics | None) -> Sparse:
        """The pruned `weight` (rows, columns) for inputs with these `statistics`.

        Raises `PlanError` if the pattern does not divide the columns, `ModelError` for weights or Hessians that are not
        finite.
        """
        weight = usable(weight)
        mask, notes = self.mask(weight, statistics)
        return pruned(weight, weight, mask, statistics, notes)

    def mask(self, weight: Tensor, statistics: Statistics | None) -> tuple[Tensor, tuple[str, ...]]:
        """Which weights stay, bool (rows, columns), and what is to be noted."""
        scores, notes = self.scores(weight, statistics)
        return self.keep(scores), notes

    def scores(self, weight: Tensor, statistics: Statistics | None) -> tuple[Tensor, tuple[str, ...]]:
        """How much each weight matters, (rows, columns) from 0, and what is to be noted."""
        size, notes = activity(weight, statistics)
        return weight.abs() * size, notes
