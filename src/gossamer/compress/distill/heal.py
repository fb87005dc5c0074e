"""Healing: the numbers that a compressed model may still change learn what the unchanged model does.

Distillation (arXiv 1503.02531) into the few numbers that cost no further bytes, or into small additions beside the
weights; the choice of KL direction is that of arXiv 2306.08543.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from gossamer.compress.distill.lessons import Lesson, Prediction, Reading, States, token_log_probs
from gossamer.compress.distill.parts import Parts
from gossamer.compress.distill.student import Student, Train
from gossamer.compress.distill.writing import OwnText
from gossamer.compress.passes import Phase
from gossamer.core.errors import DataError, PlanError
from gossamer.core.progress import SILENT, Progress
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.models.hierarchy import Hierarchy, Layer

CHECKS = 10
"""How often the held-out loss is looked at."""

WARM_UP = 0.1
"""Share of the steps in which the rate rises; it falls in the others."""


@dataclass(frozen=True, eq=False)
class Healed:
    """The layers' parts by path, and the mean held-out loss `before` and `after`: of these very numbers.

    `after` is the least of a few looks, so it is a little hopeful; report on data that healing never saw.
    """

    parts: dict[str, Parts]
    before: float
    after: float
    notes: tuple[str, ...] = ()


@technique("heal")
@dataclass(frozen=True)
class Heal:
    """Trains a compressed model to match the unchanged one.

    `train` says what is free besides the norms and biases of the modalities at hand: `scales` those of the grids (codes
    stay), `lora` a matrix of `rank` beside each weight (or the one that it has), `weights` the scales and all values
    off the grids that are not 0. `loss` is KL(unchanged ‖ compressed), its `reverse`, the reverse on text
    that the compressed model writes itself (`on_policy`: `tokens` of each row, drawn from `teacher_share` times the
    unchanged model's distribution and the rest its own), or the relative squared distance of the hidden states behind
    every block that holds a layer at hand (`features`). Distributions are softened by
    `temperature` (1 to 2) and kept as the `top_k` likeliest classes and the rest (None: all classes). AdamW takes
    `steps` steps of one batch each; `rate` is relative to each tensor's size, rises over a tenth of the steps and then
    falls. `seed` fixes the order of the batches and where a new matrix starts. Raises `ValueError` outside those
    ranges.
    """

    loss: Literal["forward", "reverse", "on_policy", "features"] = "forward"
    train: Train = "scales"
    top_k: int | None = 512
    temperature: float = 1.0
    tokens: int = 16
    teacher_share: float = 0.2
    rank: int = 8
    steps: int = 60
    rate: float = 0.01
    seed: int = 0

    phase: ClassVar[Phase] = "heal"

    def __post_init__(self) -> None:
        if not 1 <= self.temperature <= 2:
            raise ValueError(f"temperature cannot be {self.temperature}: it is 1 to 2")
        if not 0 < self.rate < 1:
            raise ValueError(f"rate cannot be {self.rate}: it is above 0 and below 1")
        if not 0 <= self.teacher_share < 1:
            raise ValueError(f"teacher_share cannot be {self.teacher_share}: it is at least 0 and below 1")
        for name in ("top_k", "tokens", "rank", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} cannot be {value}: it is at least 1")

    def lessons(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        layers: Sequence[Layer],
        batches: Sequence[Batch],
        read: Reading = token_log_probs,
    ) -> list[Lesson]:
        """What the unchanged `model` gives for `batches`; to be asked before it is compressed.

        `layers` are those that will be at hand, `read` finds the positions that count in an output. Memory: for each
        position 8 · `top_k` bytes, or 4 · width for each block's features; `on_policy` keeps a copy of the model.
        Raises `DataError` where the model gives nothing finite, `PlanError` for features without blocks and for models
        that cannot write where they should.
        """
        if self.loss == "on_policy":
            teacher, draw = deepcopy(model), torch.Generator().manual_seed(self.seed)
            return [
                OwnText.of(teacher, batch, self.tokens, self.teacher_share, self.temperature, draw) for batch in batches
            ]
        if self.loss != "features":
            reverse = self.loss == "reverse"
            return [Prediction.of(model, batch, read, self.top_k, self.temperature, reverse) for batch in batches]
        modules = [block.module for block in hierarchy.blocks() if set(block.layers) & set(layers)]
        if not modules:
            raise PlanError("heal: features are hidden states behind blocks, and no selected layer is in a block")
        return [States.of(model, batch, modules) for batch in batches]

    def heal(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        parts: Mapping[str, Parts],
        lessons: Sequence[Lesson],
        held_out: Sequence[Lesson],
        progress: Progress = SILENT,
    ) -> Healed:
        """Trains on `lessons` and keeps what is best on `held_out`, from other data; the model then computes with it.

        `parts` are the compressed layers by path; what `model` computes with is their sum. If no state is better than
        none, nothing changes, which the notes tell. Raises `PlanError` without layers, `DataError` without data.
        """
        if not parts:
            raise PlanError("heal: none of the selected layers is compressed: select some that earlier steps change")
        if not lessons or not held_out:
            raise DataError("heal: batches to learn from and held-out ones from other data are needed")
        draw = torch.Generator().manual_seed(self.seed)
        student = Student(model, hierarchy, parts, self.train, self.rank, draw)
        changes = [one.change for one in student.free]
        before = best = _mean_loss(model, held_out)
        kept: list[torch.Tensor] | None = None
        optimiser = torch.optim.AdamW(changes, lr=self.rate)
        looks = {round(self.steps * (look + 1) / CHECKS) for look in range(CHECKS)}
        order = _order(len(lessons), draw)
        for step in progress.track(range(1, self.steps + 1), "heal"):
            with torch.enable_grad(), student.running():
                losses = lessons[next(order)].losses(model)
                slopes = torch.autograd.grad(
                    losses.sum() / max(len(losses), 1), changes, allow_unused=True, materialize_grads=True
                )
            for change, slope in zip(changes, slopes, strict=True):
                change.grad = slope
            nn.utils.clip_grad_norm_(changes, 1.0)
            for group in optimiser.param_groups:
                group["lr"] = self.rate * self._share(step)
            optimiser.step()
            if step in looks:
                with student.running():
                    now = _mean_loss(model, held_out)
                if now < best:
                    best, kept = now, [change.detach().clone() for change in changes]
        if kept is None:
            note = f"healing did not help on held-out data, where the loss stays {before:.4g}: nothing was changed"
            return Healed(dict(parts), before, before, (note,))
        with torch.no_grad():
            for change, value in zip(changes, kept, strict=True):
                change.copy_(value)
        student.write()
        return Healed(student.parts(), before, best)

    def _share(self, step: int) -> float:
        """The share of the rate at a step, from 1."""
        rise = WARM_UP * self.steps
        return min(step / rise, (self.steps + 1 - step) / (self.steps + 1 - rise), 1.0)


@torch.no_grad()
def _mean_loss(model: nn.Module, lessons: Sequence[Lesson]) -> float:
    """The mean over all positions."""
    found = [lesson.losses(model) for lesson in lessons]
    return float(torch.cat(found).mean(dtype=torch.float64))


def _order(count: int, draw: torch.Generator) -> Iterator[int]:
    """Each number below `count` once in random order, again and again."""
    while True:
        yield from torch.randperm(count, generator=draw).tolist()
