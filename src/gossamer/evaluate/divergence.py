"""How far a candidate's predictions are from the baseline's: Kullback–Leibler divergence at every position.

KL(p || q) = Σ p (log p - log q) in nats, p the baseline's distribution and q the candidate's: the extra nats a coder
spends who believes the candidate. It is 0 only for equal distributions, needs no right answers, and resolves
differences that accuracy cannot. Positions are averaged within each example first, then examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gossamer.core.outcome import Measure
from gossamer.core.progress import SILENT, Progress
from gossamer.data.batch import Batch
from gossamer.evaluate.intervals import Z
from gossamer.evaluate.task import Task, forward

if TYPE_CHECKING:
    from torch import Tensor, nn

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


def mean_with_error(values: Tensor) -> Measure:
    """The mean of one number per example and its 95 % interval from the standard error; NaN examples are left out."""
    kept = values[~values.isnan()].double()
    n = int(kept.numel())
    if n == 0:
        raise ValueError("no example has a position to compare")
    mean = float(kept.mean())
    error = float(kept.std()) / math.sqrt(n) if n > 1 else 0.0
    return Measure(value=mean, low=mean - Z * error, high=mean + Z * error, n=n, method="mean ± 1.96 standard errors")


@dataclass(frozen=True)
class Reference:
    """The baseline's log-probabilities on a task, batch by batch, and which of each batch's positions are kept.

    `kept` is None where all are; else a sorted index of positions, the same for every candidate.
    """

    task: Task
    batch_size: int
    log_probs: tuple[Tensor, ...]
    kept: tuple[Tensor | None, ...]

    @classmethod
    def record(
        cls,
        task: Task,
        model: nn.Module,
        *,
        batch_size: int = 16,
        half: bool = False,
        most_bytes: int = 2**30,
        progress: Progress = SILENT,
    ) -> Reference:
        """Runs the baseline once over the task.

        `half` stores float16 (log-probabilities within 2^-11 relative, and normalised again when read). Where all
        positions would take more than `most_bytes`, every batch keeps evenly spaced ones: exact KL at fewer places.
        """
        import torch

        dtype = torch.float16 if half else torch.float32
        batches = -(-len(task) // batch_size)
        stored: list[Tensor] = []
        kept: list[Tensor | None] = []
        for batch in progress.track(task.batches(batch_size), "baseline", batches):
            log_probs = task.log_probs(forward(model, batch), batch)
            positions, classes = log_probs.shape
            room = max(batch.size, most_bytes // batches // (classes * dtype.itemsize))
            rows = None if positions <= room else torch.arange(room) * positions // room
            stored.append((log_probs if rows is None else log_probs[rows.to(log_probs.device)]).cpu().to(dtype))
            kept.append(rows)
        return cls(task, batch_size, tuple(stored), tuple(kept))

    @property
    def bytes(self) -> int:
        """Memory that the stored log-probabilities take."""
        return sum(t.numel() * t.element_size() for t in self.log_probs)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """The task's batches with their numbers, in the order of recording."""
        return iter(enumerate(self.task.batches(self.batch_size)))

    def kl(self, number: int, batch: Batch, output: Any) -> tuple[Tensor, Tensor]:
        """KL at each kept position of batch `number` for a candidate's output, and the examples they belong to."""
        log_probs, owners = self.task.log_probs(output, batch), self.task.owners(batch)
        rows = self.kept[number]
        if rows is not None:
            log_probs, owners = log_probs[rows.to(log_probs.device)], owners[rows]
        return kl_per_position(self.log_probs[number], log_probs).cpu(), owners

    def compare(
        self, run: nn.Module | Callable[[int, Batch], Any], progress: Progress = SILENT, stage: str = "divergence"
    ) -> Tensor:
        """Mean KL of each example: (examples,) float64. `run` is a model, or gives the output of batch `number`."""
        import torch

        values, owners = [], []
        for number, batch in progress.track(self, stage, len(self.log_probs)):
            output = forward(run, batch) if isinstance(run, torch.nn.Module) else run(number, batch)
            gap, belongs = self.kl(number, batch, output)
            values.append(gap)
            owners.append(belongs)
        return example_means(torch.cat(values), torch.cat(owners), len(self.task))
