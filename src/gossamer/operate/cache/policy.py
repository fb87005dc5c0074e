"""What an eviction policy is, and how the rows to keep follow from its scores.

A policy is a frozen dataclass that sees attention, never a model: rows of the cache are scored for each key–value
head, the best stay. Of grouped queries (GQA) all heads of a group vote on the head that they share.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.core.errors import SettingError


@dataclass(frozen=True)
class Policy:
    """Base of the policies. Raises `SettingError` for a negative count."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 0:
                raise SettingError(f"{name} {value} is not possible: give 0 or more")

    @property
    def looks(self) -> int | None:
        """How many of the latest queries it judges by: None for all since the start, 0 for none."""
        return 0

    def reserved(self, budget: int) -> tuple[int, int]:
        """How many of the first and of the latest rows stay whatever their score, of `budget` in all."""
        return 0, 0

    def tally(self, weights: Tensor, visible: Tensor) -> Tensor:
        """What some queries say about the rows, (key–value heads, rows); it is summed over all queries looked at.

        `weights` (key–value heads, queries of one group, queries, rows) are attention probabilities, `visible`
        (queries, rows) says which rows a query may look at; the others have weight 0.
        """
        return weights.new_zeros(weights.shape[0], weights.shape[-1])

    def score(self, tally: Tensor) -> Tensor:
        """The scores (key–value heads, rows) from the summed tally of the same shape: the highest stay."""
        return tally


def kept_rows(scores: Tensor, budget: int, first: int, latest: int) -> Tensor:
    """The rows that stay, (heads, budget), in order, by scores (heads, rows); of equals the later one."""
    scores = scores.clone()
    scores[:, :first] = torch.inf
    scores[:, scores.shape[1] - latest :] = torch.inf
    best = scores.flip(1).sort(dim=1, descending=True, stable=True).indices[:, :budget]
    return (scores.shape[1] - 1 - best).sort(dim=1).values
