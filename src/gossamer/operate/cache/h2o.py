"""Heavy hitters: what has drawn most attention so far."""

from dataclasses import dataclass

from torch import Tensor

from gossamer.core.errors import SettingError
from gossamer.operate.cache.policy import Policy


@dataclass(frozen=True)
class H2O(Policy):
    """Keeps the tokens with the largest sum of attention over all queries, and the latest ones.

    `heavy`, in [0, 1], is the share of the budget that heavy hitters get, rounded down (Zhang et al. 2023,
    arXiv:2306.14048).
    """

    heavy: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.heavy <= 1:
            raise SettingError(f"heavy {self.heavy} is not possible: give a share of the budget, 0 to 1")

    @property
    def looks(self) -> int | None:
        """All queries."""
        return None

    def reserved(self, budget: int) -> tuple[int, int]:
        """The latest rows, what heavy hitters leave of the budget."""
        return 0, budget - int(self.heavy * budget)

    def tally(self, weights: Tensor, visible: Tensor) -> Tensor:
        """The attention that each row drew, averaged over the group."""
        return weights.mean(1).sum(1)
