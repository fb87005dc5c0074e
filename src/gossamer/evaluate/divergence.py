"""How far a candidate's predictions are from the baseline's: Kullback–Leibler divergence at every position.

KL(p || q) = Σ p (log p - log q) in nats, p the baseline's distribution and q the candidate's: the extra nats a coder
spends who believes the candidate. It is 0 only for equal distributions, needs no right answers, and resolves
differences that accuracy cannot.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_NUMBERS = 2**24
"""Probabilities that are in double precision at one time."""


def kl_per_position(baseline: Tensor, candidate: Tensor) -> Tensor:
    """KL(p || q) in nats at each position: (positions,) float32, never negative.

    Both arguments are normalised log-probabilities (positions, classes) of any float type, taken in chunks, so a
    vocabulary of 49k costs no second copy. Where p is 0, a class adds nothing. Distributions rounded to 16 bits for
    storage are normalised again first; float32 ones are taken as they are (absolute error about 1e-6).
    """
    import torch

    if baseline.shape != candidate.shape:
        raise ValueError(f"distributions differ in shape: {tuple(baseline.shape)} and {tuple(candidate.shape)}")
    rows = max(1, CHUNK_NUMBERS // max(1, baseline.shape[-1]))
    parts = []
    for p, q in zip(torch.split(baseline, rows), torch.split(candidate, rows), strict=True):
        log_p, log_q = (_normalised(x.to(candidate.device)) for x in (p, q))
        gap = torch.nan_to_num(log_p.exp() * (log_p - log_q), nan=0.0, posinf=math.inf)
        parts.append(gap.sum(-1, dtype=torch.float64).clamp_min(0).float())
    return torch.cat(parts) if parts else baseline.new_zeros(0, dtype=torch.float32)


def _normalised(log_probs: Tensor) -> Tensor:
    return log_probs.float().log_softmax(-1) if log_probs.element_size() < 4 else log_probs


def example_means(values: Tensor, owners: Tensor, count: int) -> Tensor:
    """The mean of `values` (positions,) within each example 0..count-1: (count,) float64, NaN without positions."""
    import torch

    owners = owners.to(values.device)
    sums = torch.zeros(count, dtype=torch.float64, device=values.device).index_add_(0, owners, values.double())
    return sums / torch.bincount(owners, minlength=count)
