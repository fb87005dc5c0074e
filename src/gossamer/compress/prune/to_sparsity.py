"""What every pruner is told, and how it leaves a mask."""

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gossamer.compress.passes import Phase, Sparse
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import PlanError


@dataclass(frozen=True)
class ToSparsity:
    """How many weights become zero, and where.

    `sparsity` in (0, 1) is the share that goes, to the nearest whole number of weights. `pattern` "n:m" keeps n of
    every m neighbouring columns in each row: "2:4" keeps two of four, which is a sparsity of 0.5. A pattern implies its
    sparsity, so one of the two is enough; with neither, half of the weights go. Raises `ValueError` for values outside
    those ranges, and for two that contradict each other.
    """

    sparsity: float | None = None
    pattern: str | None = None

    phase: ClassVar[Phase] = "sparsify"

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity cannot be {self.sparsity}: it is above 0 and below 1")
        if self.groups is not None:
            kept, width = self.groups
            if self.sparsity is not None and abs(self.sparsity - (1 - kept / width)) > 1e-6:
                raise ValueError(
                    f"sparsity {self.sparsity:g} contradicts pattern {self.pattern}, which is {1 - kept / width:g}: "
                    "give one of the two"
                )

    @property
    def groups(self) -> tuple[int, int] | None:
        """How many columns stay of how many neighbours; None without a pattern."""
        if self.pattern is None:
            return None
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern, re.ASCII)
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(f'pattern cannot be {self.pattern!r}: "n:m" keeps n of every m columns, such as "2:4"')
        return int(found[1]), int(found[2])

    def removed(self, count: int) -> int:
        """How many of `count` weights go where no pattern says which neighbours compete."""
        return round((0.5 if self.sparsity is None else self.sparsity) * count)

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` if the pattern does not fit a weight of this shape."""
        if self.groups is not None and columns % self.groups[1]:
            fitting = [width for width in range(2, min(columns, 32) + 1) if columns % width == 0]
            hint = f"m can be {', '.join(map(str, fitting))}" if fitting else "use sparsity instead"
            raise PlanError(f"pattern {self.pattern} does not fit {columns} columns: {hint}")

    def keep(self, scores: Tensor) -> Tensor:
        """Which weights stay, bool (rows, columns): the highest `scores` of each row, or of each group of a row.

        Every row or group loses the same number; of equal scores the leftmost go. Raises as `check` does.
        """
        self.check(*scores.shape)
        if self.groups is None:
            return ~lowest(scores, self.removed(scores.shape[1]))
        kept, width = self.groups
        return ~lowest(scores.reshape(-1, width), width - kept).reshape(scores.shape)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` lowest of each row of `scores` are, bool (rows, columns); of equal ones the leftmost."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    below, equal = scores < threshold, scores == threshold
    missing = count - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1) <= missing))


def pruned(
    weight: Tensor, values: Tensor, mask: Tensor, statistics: Statistics | None, notes: tuple[str, ...] = ()
) -> Sparse:
    """The result: `values` (rows, columns) where `mask` is True, in the place of `weight`."""
    return Sparse(weight, values.where(mask, 0.0), mask, statistics, notes)
