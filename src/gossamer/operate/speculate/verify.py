"""Deciding on drafted tokens so that what is written follows the target's law exactly, however bad the drafts are.

A rule looks at one position: the target's law p, the law q that K drafts X₁…X_K were drawn from independently, and
the drafts. It says with which probability each of them, one after the other, is taken, and by which law a token is
drawn if none is: the residual. With a single draft all rules are the same: take X with min(1, p(X)/q(X)), else draw
from max(p − q, 0), normalised (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318).

All laws are probabilities (vocabulary,), float64, that sum to 1 up to rounding.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gossamer.engine.sampling import draw

_STEPS = 45
"""Halvings of [1, K]: at the end ρ is known to 13 digits."""


@dataclass(frozen=True)
class Verdict:
    """What a rule says on some drafts.

    `take` (drafts,): the probability that each is taken, given that none before it was. `residual` (vocabulary,): the
    law of the token if none was.
    """

    take: Tensor
    residual: Tensor


class Rule(Protocol):
    """A way to verify drafts. Whatever p and q are, the token that comes of it follows p."""

    def judge(self, p: Tensor, q: Tensor, drafts: Sequence[int]) -> Verdict:
        """The verdict on `drafts`, token ids drawn independently from q: at least one."""
        ...

    def acceptance(self, p: Tensor, q: Tensor, count: int) -> float:
        """The probability that one of `count` drafts is taken."""
        ...


@dataclass(frozen=True)
class Recursive:
    """Rejection again and again: each rejected draft leaves the residual of rejection as the next one's target.

    p₁ = p; Xᵢ is taken with min(1, pᵢ(Xᵢ)/q(Xᵢ)); pᵢ₊₁ = max(pᵢ − q, 0), normalised. The acceptance is
    1 − ∏ᵢ (1 − Σₓ min(pᵢ, q)) (SpecInfer, Miao et al. 2024, arXiv 2305.09781).
    """

    def judge(self, p: Tensor, q: Tensor, drafts: Sequence[int]) -> Verdict:
        """See `Rule`."""
        take = []
        for draft in drafts:
            take.append(_ratio(p, q, draft))
            p = _normalised((p - q).clamp(min=0), p)
        return Verdict(torch.stack(take), p)

    def acceptance(self, p: Tensor, q: Tensor, count: int) -> float:
        """See `Rule`."""
        missed = 1.0
        for _ in range(count):
            missed *= 1 - float(torch.minimum(p, q).sum())
            p = _normalised((p - q).clamp(min=0), p)
        return 1 - missed


@dataclass(frozen=True)
class KSeq:
    """K-SEQ, near-optimal transport from K drafts to one token (SpecTr, Sun et al. 2023, arXiv 2310.15141).

    With β(ρ) = Σₓ min(q(x), p(x)/ρ), ρ is the smallest in [1, K] for which 1 − (1 − β)^K ≤ ρ·β. Each Xᵢ is taken with
    min(1, p(Xᵢ)/(ρ·q(Xᵢ))); the residual is p − min(q, p/ρ)·(1 − (1 − β)^K)/β, normalised: by the choice of ρ nowhere
    negative. The acceptance is 1 − (1 − β)^K, at least 1 − (1 − 1/K)^K of the best that any rule can reach.
    """

    def judge(self, p: Tensor, q: Tensor, drafts: Sequence[int]) -> Verdict:
        """See `Rule`."""
        count = len(drafts)
        rho, beta = _division(p, q, count)
        take = torch.stack([_ratio(p / rho, q, draft) for draft in drafts])
        share = _any_of(beta, count) / beta if beta > 0 else 0.0
        return Verdict(take, _normalised((p - torch.minimum(q, p / rho) * share).clamp(min=0), p))

    def acceptance(self, p: Tensor, q: Tensor, count: int) -> float:
        """See `Rule`."""
        return _any_of(_division(p, q, count)[1], count)


RULES: dict[str, Rule] = {"recursive": Recursive(), "kseq": KSeq()}
"""The rules by name."""


@dataclass(frozen=True)
class Walked:
    """How far drafts came: the `tokens` written, of which all but the last are drafted ones, and the number of a `row`
    that starts with those. `bonus`: no draft was rejected, and the last token is the target's own after all of them;
    else it was `recovered` from the residual."""

    tokens: list[int]
    row: int
    bonus: bool


def walk(p: Tensor, q: Tensor, drafts: Tensor, rule: Rule, uniform: Callable[[], Tensor]) -> Walked:
    """Verifies K drafts of L tokens, position by position, on those that still are what has been written.

    `drafts` (K, L), drawn independently: token by token from `q` (K, L, vocabulary), which must be equal where drafts
    have been equal so far. `p` (K, L + 1, vocabulary): the target's laws before each token and after the last.
    `uniform` gives random numbers in [0, 1). Equal drafts count as often as they came. Sampled tokens follow p exactly,
    for one position as for many: what is left of the drafts at a position has been drawn from q there independently.
    """
    rows = list(range(len(drafts)))
    written: list[int] = []
    for at in range(drafts.shape[1]):
        tokens = [int(drafts[row, at]) for row in rows]
        verdict = rule.judge(p[rows[0], at], q[rows[0], at], tokens)
        taken = next((token for token, take in zip(tokens, verdict.take, strict=True) if uniform() < take), None)
        if taken is None:
            return Walked([*written, int(draw(verdict.residual, uniform()))], rows[0], bonus=False)
        written.append(taken)
        rows = [row for row, token in zip(rows, tokens, strict=True) if token == taken]
    return Walked([*written, int(draw(p[rows[0], -1], uniform()))], rows[0], bonus=True)


def _ratio(p: Tensor, q: Tensor, draft: int) -> Tensor:
    """min(1, p/q) at a draft, which q can have given: its probability is not 0."""
    return (p[draft] / q[draft]).clamp(max=1)


def _normalised(rest: Tensor, otherwise: Tensor) -> Tensor:
    """`rest` as a law; `otherwise` where nothing rests: then it is never drawn from."""
    total = rest.sum()
    return rest / total if total > 0 else otherwise


def _any_of(chance: float, count: int) -> float:
    """The probability that at least one of `count` independent events of this chance comes, tiny ones not lost."""
    return 1.0 if chance >= 1 else -math.expm1(count * math.log1p(-chance))


def _division(p: Tensor, q: Tensor, count: int) -> tuple[float, float]:
    """ρ and β(ρ) of K-SEQ: the upper end of the last interval, where the condition holds."""
    smaller = torch.minimum(p, q)
    if count == 1:
        return 1.0, float(smaller.sum())
    common = smaller > 0
    p, q = p[common], q[common]
    ratios, order = (p / q).sort()
    below: list[float] = torch.nn.functional.pad(p[order].cumsum(0), (1, 0)).tolist()
    above: list[float] = torch.nn.functional.pad(q[order].flip(0).cumsum(0), (1, 0)).flip(0).tolist()
    limits: list[float] = ratios.tolist()

    def beta(rho: float) -> float:
        """Σ min(q, p/ρ): p/ρ where the ratio of the two is below ρ, q where it is not."""
        at = bisect_left(limits, rho)
        return below[at] / rho + above[at]

    def fits(rho: float) -> bool:
        return _any_of(beta(rho), count) <= rho * beta(rho)

    low, high = 1.0, float(count)
    if fits(low):
        return low, beta(low)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high, beta(high)
