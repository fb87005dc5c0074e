"""Optimal brain restoration: the weights that stay make up for those that go, exactly (arXiv 2509.11177)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossamer.compress.factor import Factor
from gossamer.compress.prune.compensating import Compensating
from gossamer.compress.prune.sparsegpt import SparseGpt
from gossamer.compress.prune.wanda import Wanda
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique

_ELEMENTS = 1 << 23


@technique("obr")
@dataclass(frozen=True)
class Obr(Compensating):
    """Takes the mask of `wanda` or `sparsegpt`, then moves what a row loses, E, onto what it keeps, R: by
    H_RR⁻¹ H_RE w_E, the least output error that any weights under the mask can have.

    SparseGPT's weights make up only for columns before them, these for all. The paper's second half, pushing rounding
    errors onto weights that are not rounded yet, is what `gptq` does with a mask: let it follow. The work is one
    Cholesky factorisation for each row.
    """

    mask: Literal["wanda", "sparsegpt"] = "wanda"

    def compensate(self, weight: Tensor, statistics: Statistics, factor: Factor) -> tuple[Tensor, Tensor]:
        """See `Compensating`."""
        if self.mask == "wanda":
            mask, _ = Wanda(self.sparsity, self.pattern).mask(weight, statistics)
        else:
            _, mask = SparseGpt(self.sparsity, self.pattern, self.damping).compensate(weight, statistics, factor)
        root = (factor.pull.T * factor.pivots).double()
        return restore(weight, mask, root @ root.T), mask


def restore(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """The weights under `mask` bool (rows, columns) that come closest to `weight`, float32 (rows, columns).

    `hessian` float64 (columns, columns) is positive definite. The weights solve H_RR ŵ_R = (w H)_R, a system for each
    row, a few rows at a time. Rows that keep fewer weights than others beside them are filled up by ones on the
    diagonal.
    """
    values = torch.zeros_like(weight)
    at_once = max(1, _ELEMENTS // weight.shape[1] ** 2)
    for start in range(0, len(weight), at_once):
        kept = mask[start : start + at_once]
        places = torch.argsort(kept.int(), dim=1, descending=True, stable=True)[:, : int(kept.sum(1).max())]
        real = kept.gather(1, places)
        systems = hessian[places[:, :, None], places[:, None, :]] * (real[:, :, None] & real[:, None, :])
        systems.diagonal(dim1=1, dim2=2).masked_fill_(~real, 1)
        wanted = (weight[start : start + at_once].double() @ hessian).gather(1, places) * real
        solved = torch.cholesky_solve(wanted[:, :, None], torch.linalg.cholesky(systems))
        values[start : start + at_once].scatter_(1, places, solved[:, :, 0].float())
    return values
