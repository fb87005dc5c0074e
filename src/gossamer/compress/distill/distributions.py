"""Distributions kept small, as their likeliest classes and one bucket for all others, and divergences between them.

Joining classes never makes two distributions differ more, so a divergence of buckets is a lower bound of the whole one,
and equal to it where the bucket holds a single class.
"""

import torch
from torch import Tensor

FLOOR = -100.0
"""Log-probability below which float32 knows no difference; keeps classes that cannot occur (-∞) out of gradients."""


def sharpened(log_probs: Tensor, temperature: float) -> Tensor:
    """The normalised log-probabilities (positions, classes) of the same logits at another temperature."""
    return (log_probs / temperature).log_softmax(-1)


def likeliest(log_probs: Tensor, top_k: int | None) -> Tensor | None:
    """The `top_k` likeliest classes of each position, int32 (positions, top_k); None, for all, if there are no more."""
    if top_k is None or top_k >= log_probs.shape[-1]:
        return None
    return log_probs.topk(top_k, dim=-1).indices.int()


def bucketed(log_probs: Tensor, classes: Tensor | None) -> Tensor:
    """The log-probabilities of `classes` and, behind them, of all others together: (positions, kept + 1).

    All of them (positions, classes) in their own order for None.
    """
    log_probs = log_probs.clamp_min(FLOOR)
    if classes is None:
        return log_probs
    kept = classes.long()
    others = log_probs.scatter(-1, kept, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, kept), others], -1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats at each position, both log-probabilities (positions, classes) above -∞."""
    return (p.exp() * (p - q)).sum(-1)
