"""What was important stays important: the rest goes."""

from dataclasses import dataclass

from torch import Tensor

from gossamer.operate.cache.policy import Policy


@dataclass(frozen=True)
class Scissorhands(Policy):
    """Drops the tokens that most often, over the latest `history` queries, drew less than the average attention (1/t
    for a query that sees t tokens); the latest `recent` tokens stay (Liu et al. 2023, arXiv:2305.17118).

    The history goes back to the last eviction at most, as it is the tokens still there that are judged. The paper drops
    half of the budget at once: give `block` half of `budget` for that.
    """

    history: int = 400
    recent: int = 10

    @property
    def looks(self) -> int | None:
        """The history."""
        return self.history

    def reserved(self, budget: int) -> tuple[int, int]:
        """The recent ones."""
        return 0, self.recent

    def tally(self, weights: Tensor, visible: Tensor) -> Tensor:
        """Less one for each query of the group that saw the row and gave it less than the average."""
        average = 1 / visible.sum(-1, keepdim=True)
        low = (weights < average) & visible
        return -low.sum((1, 2)).to(weights)
