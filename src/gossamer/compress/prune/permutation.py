"""Channel permutation (RIA, ICLR 2024): an order of columns in which n:m groups keep more of what matters."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gossamer.core.errors import PlanError


@dataclass(frozen=True, eq=False)
class Permutation:
    """`order` int64 (columns,) gives the column at each position; `before` and `after` in [0, 1] are the shares of the
    total score that the pattern keeps in the stored order and in this one."""

    order: Tensor
    before: float
    after: float


def find_permutation(scores: Tensor, kept: int, width: int) -> Permutation:
    """An order of the columns of `scores` (rows, columns), none below 0, for keeping `kept` of every `width`.

    Columns are dealt to the groups from the heaviest on, forwards and backwards in turn, so that heavy ones do not
    compete. Then the columns at one position of all groups are taken out and put back where they are worth most, an
    assignment problem, for each position. The stored order stays if that is no better. Raises `PlanError` if the width
    does not divide the columns.
    """
    columns = scores.shape[1]
    if not 0 < kept < width or columns % width:
        raise PlanError(f"{kept}:{width} does not fit {columns} columns: keep 1 or more of a width that divides them")
    groups = columns // width
    dealt = torch.argsort(scores.sum(0), descending=True, stable=True).reshape(width, groups)
    dealt[1::2] = dealt[1::2].flip(1)
    for position in range(width):
        rest = scores[:, dealt[torch.arange(width) != position].T]  # (rows, groups, width - 1)
        # A column adds to a group what it has above the least score that the group would keep without it.
        bar = rest.topk(kept, dim=2).values[:, :, -1]
        gain = torch.stack([(scores[:, column, None] - bar).clamp_min(0).sum(0) for column in dealt[position]])
        taken, group = linear_sum_assignment(gain.double().numpy(), maximize=True)
        dealt[position, torch.from_numpy(group)] = dealt[position, torch.from_numpy(taken)].clone()
    found = dealt.T.reshape(-1)
    stored = torch.arange(columns)
    before, after = (retained(scores[:, order], kept, width) for order in (stored, found))
    return Permutation(found, before, after) if after > before else Permutation(stored, before, before)


def retained(scores: Tensor, kept: int, width: int) -> float:
    """The share of the total of `scores` (rows, columns) in the `kept` highest of every `width` neighbours."""
    whole = float(scores.sum(dtype=torch.float64))
    best = scores.reshape(len(scores), -1, width).topk(kept, dim=2).values
    return float(best.sum(dtype=torch.float64)) / whole if whole > 0 else 1.0
