"""The never-worse guard: a searched plan must beat the best uniform one of at most the same bytes on fresh data."""

from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.compress.apply import Applied
from gossamer.search.scorer import Score
from gossamer.search.units import Assignment


@dataclass(frozen=True)
class Contender:
    """A plan that was really applied: `score` on the guard part."""

    label: str
    weight_bytes: int
    assignment: Assignment
    applied: Applied
    score: Score


@dataclass(frozen=True)
class Verdict:
    """The plan to keep, the best uniform plan it was compared with (None: no uniform plan fits), and a sentence."""

    winner: Contender
    uniform: Contender | None
    text: str


def judge(searched: Contender, uniforms: Sequence[Contender]) -> Verdict:
    """Keeps the searched plan unless a uniform one diverges less from the unchanged model."""
    if not uniforms:
        return Verdict(searched, None, "No uniform setting fits the budget, so the searched plan stands unopposed.")
    best = min(uniforms, key=lambda contender: contender.score.mean_kl)
    ours, theirs = searched.score.mean_kl, best.score.mean_kl
    figures = f"KL {ours:.4g} against {theirs:.4g} nats on {len(best.score.kl)} fresh examples"
    if ours <= theirs:
        return Verdict(searched, best, f"The searched plan is kept: no worse than {best.label} ({figures}).")
    return Verdict(best, best, f"{best.label} is returned instead of the searched plan, which lost to it ({figures}).")
