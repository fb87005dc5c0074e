"""Would structure pay? One block left out, or a quarter of one block's channels, against bits alone at equal bytes.

One walk through the unchanged model tries every block both ways, at 16 bits. The change that costs least for the bytes
that it frees is then put to the allocation: what is left of the model is allocated exactly within the same budget.
Both sides are predicted alike, by adding up divergences that were measured one at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gossamer.compress.calibrate import Stream, collect
from gossamer.compress.statistics import Statistics
from gossamer.compress.structure.narrowing import masked
from gossamer.compress.structure.outputs import passed_on
from gossamer.compress.swap import Swap, finite_weight
from gossamer.core.errors import BudgetError, PlanError
from gossamer.models.hierarchy import Layer
from gossamer.models.surgery import Units, channels_of, tower_of
from gossamer.search.allocate import Option, allocate
from gossamer.search.job import Job
from gossamer.search.units import Costs, Unit

KEEP = 0.75
"""The share of channels that stays where some go."""

RIDGE = 0.01
"""The damping of the fit of the columns that stay (see `refit`)."""


@dataclass(frozen=True)
class Change:
    """A change of one block: `kl` is its divergence (nats) with all else unchanged, `shares` what stays of its units.

    `freed` are bytes that go besides those of units.
    """

    kind: str
    block: str
    kl: float
    shares: Mapping[str, float]
    freed: int = 0

    @property
    def name(self) -> str:
        """In words."""
        return f"leaving out {self.block}" if self.kind == "drop" else f"cutting a quarter of {self.block}'s channels"


def changes(job: Job) -> list[Change]:
    """Every block without itself and without its least channels, measured on the `measure` part.

    Blocks that the data does not reach are left out, and so are a tower's only block, and channels of families where
    none can go.
    """
    model, hierarchy = job.opened.model, job.opened.hierarchy
    towers = {block.path: tower_of(hierarchy, block.path) for block in hierarchy.blocks()}
    channels: dict[str, Units] = {}
    for tower in dict.fromkeys(towers.values()):
        try:
            channels |= dict.fromkeys((block.path for block in tower), channels_of(model, tower))
        except PlanError:
            continue

    def compute() -> Any:
        scorer = job.scorer("measure")
        calibration, measured = Stream(job.walk, job.calibration), Stream(job.walk, scorer.batches)
        found = []
        for stage in job.progress.track(job.walk.stages, "structure, block by block"):
            calibration.advance()
            measured.advance()
            path = stage.block.path
            if len(towers[path]) > 1:

                def skipped(number: int, batch: Any) -> Any:
                    entry = measured.entries[number]
                    return job.walk.finish(entry, batch.inputs, passed_on(entry.hidden, job.walk.through(entry)))

                found.append(["drop", path, scorer.score(skipped).mean_kl])
            if path in channels:
                reader = channels[path].readers[path]
                statistics = collect(model, calibration, [reader])
                swap = Swap(model)
                weight = finite_weight(model, reader)
                swap.put_values(reader, _cut(weight, channels[path].columns(path), statistics.get(reader.path)))
                found.append(["cut", path, scorer.score(measured.output).mean_kl])
                swap.restore()
        return found

    record = job.folder.step("structure", [job.key, KEEP, RIDGE, sorted(channels)], compute)
    cut = {path: {part.tensor for part in units.parts[path]} for path, units in channels.items()}
    return [_change(job, kind, path, kl, cut.get(path, set())) for kind, path, kl in record]


def _cut(weight: torch.Tensor, columns: torch.Tensor, statistics: Statistics | None) -> torch.Tensor:
    """`weight` (rows, all) with zeros where it reads the channels that give least; `columns` int64 (count, width)."""
    columns, energy = columns.to(weight.device), weight.square().sum(0)
    if statistics is not None:
        energy = energy * statistics.hessian.diagonal()
    kept = columns[energy[columns].sum(1).topk(round(KEEP * len(columns))).indices.sort().values].flatten()
    return masked(weight, kept, statistics, RIDGE)


def _change(job: Job, kind: str, path: str, kl: float, cut: set[str]) -> Change:
    block = next(block for block in job.opened.hierarchy.blocks() if block.path == path)
    inside = [unit for unit in job.units if unit.layers[0] in block.layers]
    if kind == "cut":
        return Change(kind, path, kl, {unit.name: _share(unit.layers, cut) for unit in inside})
    freed = 2 * block.parameters - sum(unit.choices[0].bytes for unit in inside)
    return Change(kind, path, kl, {unit.name: 0.0 for unit in inside}, freed)


def _share(layers: Sequence[Layer], cut: set[str]) -> float:
    """What stays of `layers` when the tensors in `cut` shrink to `KEEP`."""
    sizes = {layer.tensor: layer.rows * layer.columns for layer in layers}
    return sum(size * (KEEP if tensor in cut else 1) for tensor, size in sizes.items()) / sum(sizes.values())


def does_structure_pay(
    units: Sequence[Unit], losses: Sequence[Sequence[float]], found: Sequence[Change], room: Costs
) -> list[str]:
    """What the changes say for a plan whose units have `room`, in sentences, one for each kind of change.

    `losses[u][c]` is the divergence of unit u at choice c (nats). Nothing is said where bits alone lose nothing.
    """
    alone = _predicted(units, losses, room)
    if alone is None or alone <= 0:
        return []
    sentences = []
    for kind in dict.fromkeys(change.kind for change in found):
        least = min((change for change in found if change.kind == kind), key=lambda one: one.kl / _freed(units, one))
        with_it = _predicted(units, losses, room, least)
        if with_it is None:
            continue
        outcome = "it does not pay here" if with_it >= alone else f"it may pay here: see {_TECHNIQUES[kind]}"
        sentences.append(
            f"At the same bytes, {least.name} and giving the bytes to other layers is predicted to lose "
            f"{with_it:.3g} nats per position where bits alone lose {alone:.3g}: {outcome}."
        )
    return sentences


_TECHNIQUES = {"drop": "drop_block", "cut": "prune_channels"}


def _freed(units: Sequence[Unit], change: Change) -> float:
    """Bytes at 16 bits that a change frees, at least 1."""
    gone = sum(unit.choices[0].bytes * (1 - change.shares.get(unit.name, 1.0)) for unit in units)
    return max(1.0, change.freed + gone)


def _predicted(
    units: Sequence[Unit], losses: Sequence[Sequence[float]], room: Costs, change: Change | None = None
) -> float | None:
    """The least total divergence within the room after a change; None if nothing fits."""
    shares = change.shares if change else {}
    options = [
        [
            Option(_shrunk(choice.costs, shares.get(unit.name, 1.0)), max(0.0, loss))
            for choice, loss in zip(unit.choices, row, strict=True)
        ]
        for unit, row in zip(units, losses, strict=True)
    ]
    try:
        chosen = allocate(options, (room[0] + (change.freed if change else 0), *room[1:]))
    except BudgetError:
        return None
    return sum(options[u][c].loss for u, c in enumerate(chosen)) + (change.kl if change else 0.0)


def _shrunk(costs: Costs, share: float) -> Costs:
    """What a `share` of a unit takes of every resource."""
    return (int(costs[0] * share), *(cost * share for cost in costs[1:]))
