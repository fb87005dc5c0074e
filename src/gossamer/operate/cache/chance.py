"""A baseline that any policy should beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.operate.cache.policy import Policy


@dataclass(frozen=True)
class Chance(Policy):
    """Keeps the first `sinks` and the latest `recent` tokens, and any others at random; `seed` fixes which."""

    sinks: int = 4
    recent: int = 16
    seed: int = 0

    def reserved(self, budget: int) -> tuple[int, int]:
        """Sinks and recent ones."""
        return self.sinks, self.recent

    def score(self, tally: Tensor) -> Tensor:
        """Random numbers."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(tally.shape, generator=generator).to(tally)
