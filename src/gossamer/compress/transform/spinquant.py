"""SpinQuant: rotations that are learnt from what rounding does to the model's outputs (arXiv 2405.16406)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gossamer.compress.distill.lessons import Lesson
from gossamer.compress.passes import Aim
from gossamer.compress.soft_rounding import SoftRounding
from gossamer.compress.standins import StandIns
from gossamer.compress.transform.aimed import grids_of, rounded_inputs
from gossamer.compress.transform.answers import lessons_of
from gossamer.compress.transform.rotate import Rotate
from gossamer.compress.transform.spaces import Space, turned
from gossamer.compress.transform.stiefel import CayleyDescent
from gossamer.core.errors import PlanError
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.models.hierarchy import Hierarchy

REFIT = 10
"""Steps after which grids are fitted anew."""

CHECKS = 4
"""How often the loss over all of the data is measured on the way."""


@technique("spinquant")
@dataclass(frozen=True)
class SpinQuant(Rotate):
    """Turns what `rotate` turns, by rotations that start as `rotate`'s and are then learnt.

    Later steps of the plan say which weights are rounded, and how (inputs too, where their grids need no calibration).
    `steps` of Cayley descent lower the divergence of the outputs of the model so rounded, to nearest, from those of the
    unchanged one, on the first `samples` calibration examples, `rows` of them at a time. A step turns each stream by
    `rate` radians at first (root mean square), then by less and less, linearly down to 0. Of a few states on the way,
    the start among them, the one with the least loss over all these examples is kept. Other settings are `rotate`'s;
    `seed` also orders the examples. Raises `ValueError` for counts below 1 and rates outside (0, 1].
    """

    steps: int = 60
    rate: float = 0.02
    samples: int = 64
    rows: int = 4

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} cannot be {getattr(self, name)}: it is at least 1")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate cannot be {self.rate}: it is an angle above 0 and up to 1 radian")

    def _rotations(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        spaces: Sequence[Space],
        batches: Sequence[Batch],
        aims: Mapping[str, Aim],
    ) -> tuple[list[Tensor], tuple[str, ...]]:
        """See `Rotate`. Raises `PlanError` if nothing that turns is rounded later."""
        start, notes = super()._rotations(model, hierarchy, spaces, batches, aims)
        turning = _Turning.of(model, hierarchy, spaces, aims)
        draw = torch.Generator().manual_seed(self.seed)
        lessons = lessons_of(model, batches, self.samples, self.rows)
        stand_ins = StandIns(model, hierarchy, turning.values())
        with rounded_inputs(model, hierarchy.layers(), aims):
            found, before, after = self._learn(model, start, spaces, turning, stand_ins, lessons, draw)
        return found, (*notes, f"learning took the rounded model's divergence from {before:.4g} to {after:.4g}")

    def _learn(
        self,
        model: nn.Module,
        start: Sequence[Tensor],
        spaces: Sequence[Space],
        turning: "_Turning",
        stand_ins: StandIns,
        lessons: Sequence[Lesson],
        draw: torch.Generator,
    ) -> tuple[list[Tensor], float, float]:
        """The best rotations, and the loss over all lessons with those at the start and with these."""
        descents = [CayleyDescent(one, space.keeps_mean) for one, space in zip(start, spaces, strict=True)]

        def loss() -> float:
            turning.take([one.matrix for one in descents], refit=True)
            with torch.no_grad(), stand_ins.running():
                return float(torch.cat([lesson.losses(model) for lesson in lessons]).mean(dtype=torch.float64))

        best, before = list(start), loss()
        least, order = before, _order(len(lessons), draw)
        checks = {self.steps * check // CHECKS for check in range(1, CHECKS + 1)}
        for step in range(self.steps):
            leaves = turning.take([one.matrix for one in descents], refit=step % REFIT == 0)
            with torch.enable_grad(), stand_ins.running():
                loss_now = lessons[next(order)].losses(model).mean()
                slopes = torch.autograd.grad(loss_now, leaves, allow_unused=True, materialize_grads=True)
            for one, slope in zip(descents, slopes, strict=True):
                one.move(slope, self.rate * (1 - step / self.steps))
            if step + 1 in checks and (now := loss()) < least:
                best, least = [one.matrix for one in descents], now
        return best, before, least


class _Turning:
    """The parameters that turn or are rounded, as they are with rotations that gradients reach."""

    def __init__(self, parameters: Mapping[str, "_Turned"]) -> None:
        self._parameters = parameters
        self._rotations: list[Tensor] = []

    @classmethod
    def of(cls, model: nn.Module, hierarchy: Hierarchy, spaces: Sequence[Space], aims: Mapping[str, Aim]) -> "_Turning":
        """Those of `spaces`, whose gains are folded. Raises `PlanError` if none of them is rounded later."""
        turns: dict[str, list[tuple[int, int]]] = {}
        for number, space in enumerate(spaces):
            for use in space.uses:
                turns.setdefault(use.parameter, []).append((number, use.axis.dim))
        roundings = {layer.tensor: SoftRounding(grid) for layer, grid in grids_of(hierarchy.layers(), aims).items()}
        if not turns.keys() & roundings.keys():
            raise PlanError("spinquant learns for grids, and no later step quantises what it turns: add one, or rotate")
        return cls(
            {
                name: _Turned(model.get_parameter(name).detach(), tuple(turns.get(name, ())), roundings.get(name))
                for name in {**turns, **roundings}
            }
        )

    def take(self, rotations: Sequence[Tensor], refit: bool) -> list[Tensor]:
        """From now on parameters turn by these `rotations`, returned as leaves; `refit`: grids are fitted anew."""
        device = next(iter(self._parameters.values())).original.device
        self._rotations = [one.to(device, torch.float32).requires_grad_() for one in rotations]
        for parameter in self._parameters.values():
            if refit and parameter.rounding is not None:
                parameter.rounding.refit()
        return self._rotations

    def values(self) -> dict[str, partial[Tensor]]:
        """What makes the present value of each parameter."""
        return {name: partial(self._value, parameter) for name, parameter in self._parameters.items()}

    def _value(self, parameter: "_Turned") -> Tensor:
        return parameter.value(self._rotations)


@dataclass(frozen=True, eq=False)
class _Turned:
    """A parameter's `original`, its `turns` (number of the rotation, dimension), and how it is rounded."""

    original: Tensor
    turns: tuple[tuple[int, int], ...]
    rounding: SoftRounding | None

    def value(self, rotations: Sequence[Tensor]) -> Tensor:
        """Turned and rounded, with gradients for the rotations."""
        found = self.original.float()
        for number, dim in self.turns:
            found = turned(found, dim, rotations[number])
        return (found if self.rounding is None else self.rounding(found)).to(self.original.dtype)


def _order(count: int, draw: torch.Generator) -> Iterator[int]:
    """Each number below `count` once in random order, again and again."""
    while True:
        yield from torch.randperm(count, generator=draw).tolist()
