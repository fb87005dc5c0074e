"""What the latest queries look at, smoothed over neighbours."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gossamer.core.errors import SettingError
from gossamer.operate.cache.policy import Policy


@dataclass(frozen=True)
class SnapKV(Policy):
    """Keeps what draws most attention from the latest `window` queries, averaged over `pool` neighbouring tokens (odd),
    and these latest tokens themselves (Li et al. 2024, arXiv:2404.14469).

    It depends on the question: put that last in the prompt.
    """

    window: int = 32
    pool: int = 5

    def __post_init__(self) -> None:
        if self.window < 1:
            raise SettingError(f"window {self.window} is not possible: give 1 or more")
        if self.pool < 1 or self.pool % 2 == 0:
            raise SettingError(f"pool {self.pool} is not possible: give an odd number")

    @property
    def looks(self) -> int | None:
        """The window."""
        return self.window

    def reserved(self, budget: int) -> tuple[int, int]:
        """The window."""
        return 0, self.window

    def tally(self, weights: Tensor, visible: Tensor) -> Tensor:
        """The attention that each row drew, averaged over the group."""
        return weights.mean(1).sum(1)

    def score(self, tally: Tensor) -> Tensor:
        """Averages of neighbours before the window, which stays anyway; beyond the ends there is no attention."""
        past = tally[:, : max(0, tally.shape[1] - self.window)]
        pooled = F.avg_pool1d(past[:, None], self.pool, stride=1, padding=self.pool // 2)[:, 0]
        return F.pad(pooled, (0, tally.shape[1] - past.shape[1]))
