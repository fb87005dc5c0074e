"""Relative importance and activations (RIA, "Plug-and-Play", ICLR 2024): no row or column is emptied."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from gossamer.compress.passes import Needs, Sparse, usable
from gossamer.compress.prune.activity import activity
from gossamer.compress.prune.to_sparsity import ToSparsity, pruned
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique


@technique("ria")
@dataclass(frozen=True)
class Ria(ToSparsity):
    """Removes the lowest (|w_ij| / Σ_i |w_ij| + |w_ij| / Σ_j |w_ij|) · ‖x_j‖₂^a, with a = `exponent`, from 0.

    It is compared within each row, or within each group of a pattern. The weights that stay are not changed. Raises
    `ValueError` for an exponent below 0.
    """

    exponent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.exponent < inf:
            raise ValueError(f"exponent cannot be {self.exponent}: it is at least 0")

    @property
    def needs(self) -> Needs:
        """The inputs: without statistics the score is the relative importance."""
        return "inputs"

    def sparsify(self, weight: Tensor, statistics: Statistics | None) -> Sparse:
        """The pruned `weight` (rows, columns) for inputs with these `statistics`. Raises as `Wanda.sparsify` does."""
        weight = usable(weight)
        scores, notes = self.scores(weight, statistics)
        return pruned(weight, weight, self.keep(scores), statistics, notes)

    def scores(self, weight: Tensor, statistics: Statistics | None) -> tuple[Tensor, tuple[str, ...]]:
        """How much each weight matters, (rows, columns) from 0, and what is to be noted."""
        size, notes = activity(weight, statistics)
        return relative_importance(weight) * size**self.exponent, notes


def relative_importance(weight: Tensor) -> Tensor:
    """Each magnitude as a share of its column's sum plus as one of its row's, (rows, columns) in [0, 2]."""
    size = weight.abs()
    tiny = torch.finfo(size.dtype).tiny
    return size / size.sum(0, keepdim=True).clamp_min(tiny) + size / size.sum(1, keepdim=True).clamp_min(tiny)
