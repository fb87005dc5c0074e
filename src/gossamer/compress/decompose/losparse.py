"""A matrix of low rank plus a sparse one (LoSparse, arXiv 2306.11222), found by turns instead of by training."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.compress.decompose.of_rank import OfRank
from gossamer.compress.decompose.truncate import remarks, truncate
from gossamer.compress.passes import Decomposed, relative_loss, usable
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique


@technique("losparse")
@dataclass(frozen=True)
class LoSparse(OfRank):
    """The low rank fits what the sparse part leaves, the sparse part takes what the low rank misses most, and again.

    `sparsity` in (0, 1) is the share of each row of the sparse part that is zero; the rest of a row are the values that
    weigh most by Wanda's score (arXiv 2306.11695), magnitude times the input's norm. Of `rounds`, 3 to 10, the best
    counts. Raises `ValueError` outside those ranges.
    """

    sparsity: float = 0.5
    rounds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity cannot be {self.sparsity}: it is between 0 and 1")
        if not 3 <= self.rounds <= 10:
            raise ValueError(f"rounds cannot be {self.rounds}: they are 3 to 10")

    @property
    def leaves_rest(self) -> bool:
        """The sparse part."""
        return True

    @property
    def leaves_zeros(self) -> bool:
        """Most of the sparse part is zero."""
        return True

    def decompose(self, weight: Tensor, statistics: Statistics | None) -> Decomposed:
        """Both parts of `weight` (rows, columns) for inputs with these `statistics`. Raises as `low_rank` does."""
        return min(self._rounds(usable(weight), statistics), key=lambda parts: parts.loss)

    def _rounds(self, weight: Tensor, statistics: Statistics | None) -> Iterator[Decomposed]:
        rank, notes = self.rank_for(*weight.shape), remarks(statistics, self.damping)
        sparse = torch.zeros_like(weight)
        for _ in range(self.rounds):
            part = truncate(weight - sparse, rank, statistics, self.damping)
            missed = weight - part.dense()
            mask = self._mask(missed, statistics)
            sparse = missed * mask
            yield Decomposed(part, sparse, mask, relative_loss(missed - sparse, weight, statistics), notes)

    def _mask(self, values: Tensor, statistics: Statistics | None) -> Tensor:
        """Where a row's values that weigh most are, bool (rows, columns)."""
        scores = values.abs() if statistics is None else values.abs() * statistics.hessian.diagonal().sqrt()
        drop = int(self.sparsity * values.shape[1])
        order = torch.argsort(scores, dim=1, stable=True)
        return torch.ones_like(values, dtype=torch.bool).scatter_(1, order[:, :drop], False)
