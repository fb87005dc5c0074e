"""SparseGPT: columns are pruned one by one, and those that follow make up for it (arXiv 2301.00774)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.compress.factor import Factor
from gossamer.compress.prune.compensating import Compensating
from gossamer.compress.prune.to_sparsity import lowest
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique

_BLOCK = 128


@technique("sparsegpt")
@dataclass(frozen=True)
class SparseGpt(Compensating):
    """Removes what costs least after compensation by later columns, w_ij² / [U_jj]² with UᵀU = H⁻¹.

    The weights compete within blocks of 128 columns, all rows together, when their block's turn comes; the blocks up to
    any one lose the asked share of their weights. With a pattern they compete within each group of a row, when the
    group's turn comes. Columns keep their stored order: a group's columns are neighbours, and so they stay.
    """

    def compensate(self, weight: Tensor, statistics: Statistics, factor: Factor) -> tuple[Tensor, Tensor]:
        """What the weights become and which stay, in the form of `gptq.diffuse`: rows here are columns of the weight.

        A column that comes to its turn has been moved by the `errors` (wanted - final) of all before it. What stays
        keeps that target, what goes leaves it to those that follow. `costs` (columns,) are R_jj² = 1 / [U_jj]², 0 for
        inputs never active.
        """
        costs = factor.pivots.square().masked_fill(statistics.hessian.diagonal() <= 0, 0)
        (rows, columns), pull = weight.shape, factor.pull
        errors = weight.T.clone(memory_format=torch.contiguous_format)
        values = torch.empty_like(errors)
        mask = torch.empty_like(errors, dtype=torch.bool)
        width = _BLOCK if self.groups is None else self.groups[1]
        for start in range(0, columns, width):
            stop = min(start + width, columns)
            wanted, near = errors[start:stop], pull[start:stop, start:stop]
            targets = torch.addmm(wanted, pull[start:stop, :start], errors[:start])
            # Scores are those of the columns as they would be if all stayed: each then moves the next as well.
            drift = torch.linalg.solve_triangular(near, wanted - targets, upper=False, unitriangular=True)
            scores = (wanted - drift).square().T * costs[start:stop]
            if self.groups is None:
                goes = self.removed(rows * stop) - self.removed(rows * start)
                mask[start:stop] = ~lowest(scores.reshape(1, -1), goes).reshape(scores.shape).T
            else:
                mask[start:stop] = self.keep(scores).T
            for j, target in enumerate(targets, start):
                target.addmv_(errors[start:j].T, pull[j, start:j])
                torch.mul(target, mask[j], out=values[j])
                errors[j] -= values[j]
        return values.T.contiguous(), mask.T.contiguous()
