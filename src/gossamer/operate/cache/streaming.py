"""Attention sinks and a window."""

from dataclasses import dataclass

from gossamer.operate.cache.policy import Policy


@dataclass(frozen=True)
class Streaming(Policy):
    """Keeps the first `sinks` tokens, on which attention rests, and the latest (StreamingLLM, Xiao et al. 2023,
    arXiv:2309.17453). What stood between is forgotten."""

    sinks: int = 4

    def reserved(self, budget: int) -> tuple[int, int]:
        """The sinks; all else goes to the latest."""
        return self.sinks, max(0, budget - self.sinks)
