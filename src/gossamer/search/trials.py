"""Trials: what the search measures of candidates.

A trial says in names which candidates are put into the model and on what they are scored. Its figures depend on nothing
but the job and the trial, so each is a file in the run folder, and it does not matter where it was measured: here, one
after another, or spread over workers (`cluster.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gossamer.compress.calibrate import Stream
from gossamer.models.packed import Scheme
from gossamer.search.bank import Bank, tag
from gossamer.search.job import Job
from gossamer.search.units import Assignment, Unit

Changes = Mapping[str, Scheme | None]
"""Layer path → the scheme that it takes, None for 16 bits. Other layers stay as they are."""

Figures = list[float]
"""Mean divergence from the unchanged model, its standard error, and change of the task loss, in nats per position."""


@dataclass(frozen=True)
class Trial:
    """The model under `base`, then with each of `moves` alone on top of it, scored on a part of the data.

    All layers that move are first run in `step` of the walk, so only what follows is run again; -1 is the whole model.
    `share` (0 to 1) of the part is read.
    """

    part: str
    base: Assignment = field(default_factory=dict)
    step: int = -1
    moves: tuple[Changes, ...] = ({},)
    share: float = 1.0

    @property
    def key(self) -> Any:
        """What it is, in JSON."""
        return [self.part, self.share, self.step, _listed(self.base), [_listed(move) for move in self.moves]]


def _listed(changes: Changes) -> list[str]:
    return [f"{path}|16" if scheme is None else tag(path, scheme) for path, scheme in sorted(changes.items())]


def move(unit: Unit, choice: int) -> Changes:
    """The unit at one of its choices."""
    return {layer.path: None for layer in unit.layers} | dict(unit.choices[choice].schemes)


class Bench:
    """Measures trials on the model of one job, which is unchanged before and after each.

    Trials on the same part and base by rising steps pass the model once.
    """

    def __init__(self, job: Job, bank: Bank) -> None:
        self._job = job
        self._bank = bank
        self._stream: Stream | None = None
        self._stands: tuple[str, Assignment] | None = None

    def __call__(self, trial: Trial) -> list[Figures]:
        """The figures of every move."""
        job, found = self._job, []
        scorer, base = job.scorer(trial.part), self._bank.assignment(trial.base)
        with job.holding(base) as swap:
            stream = self._stream_at(trial)
            for changes in trial.moves:
                layers = [job.layers[path] for path in changes]
                moved = self._bank.load((path, scheme) for path, scheme in changes.items() if scheme is not None)
                swap.put_only(layers, moved)
                score = scorer.score(stream.output, trial.share)
                found.append([score.mean_kl, score.kl_stderr, score.mean_loss - scorer.baseline_loss])
                swap.put_only(layers, base)
        return found

    def _stream_at(self, trial: Trial) -> Stream:
        """The part's batches at the door of the trial's step, led there through the model as it is under the base."""
        stands = trial.part, trial.base
        if self._stream is None or self._stands != stands or self._stream.step > trial.step:
            self._stream, self._stands = Stream(self._job.walk, self._job.scorer(trial.part).batches), stands
        while self._stream.step < trial.step:
            self._stream.advance()
        return self._stream


Run = Callable[[Sequence[Trial]], Iterable[list[Figures]]]
"""Measures trials and gives their figures in the same order, each as soon as it is known."""

Runner = Callable[[Job, Bank], Run]
"""Where a job's trials are run."""


def here(job: Job, bank: Bank) -> Run:
    """One trial after another, on the job's own model."""
    bench = Bench(job, bank)
    return lambda trials: map(bench, trials)


@dataclass(frozen=True)
class Trials:
    """The trials of one job, remembered in its run folder."""

    job: Job
    bank: Bank
    run: Run

    def __call__(self, trials: Sequence[Trial], stage: str | None = None) -> list[list[Figures]]:
        """The figures of each trial; those that the run folder lacks are measured, under a bar named `stage`."""
        folder, key = self.job.folder, self.job.key
        lacking = {folder.file("trial", [key, t.key], ".json"): t for t in trials}
        fresh: Iterator[list[Figures]] = iter(self.run([t for file, t in lacking.items() if not file.exists()]))
        tracked = trials if stage is None else self.job.progress.track(trials, stage)
        return [folder.step("trial", [key, t.key], lambda: next(fresh)) for t in tracked]

    def plans(
        self, assignments: Iterable[Assignment], part: str, share: float = 1.0, stage: str | None = None
    ) -> list[Figures]:
        """The figures of whole plans."""
        trials = [Trial(part, assignment, share=share) for assignment in assignments]
        return [figures for (figures,) in self(trials, stage)]
