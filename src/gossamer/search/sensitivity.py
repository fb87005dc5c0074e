"""Sensitivity: what each choice of each unit does to the output when everything else is left alone.

One walk through the unchanged model does it all: at every step each choice is swapped in from the bank while only the
rest of the model is run again, from remembered block inputs. A control with nothing swapped must give zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gossamer.compress.calibrate import layers_by_step
from gossamer.models.hierarchy import Layer
from gossamer.search.bank import Bank
from gossamer.search.job import Job
from gossamer.search.trials import Figures, Trial, Trials, move
from gossamer.search.units import Unit


@dataclass(frozen=True)
class Sensitivity:
    """`kl[u][c]`: divergence in nats per position of unit u at choice c; `stderr`, `loss_delta` likewise.

    `measured[u][c]` is False where the divergence was inferred from anchors. `control` is the divergence with nothing
    swapped, measured through the same suffix runs.
    """

    kl: tuple[tuple[float, ...], ...]
    stderr: tuple[tuple[float, ...], ...]
    loss_delta: tuple[tuple[float, ...], ...]
    measured: tuple[tuple[bool, ...], ...]
    control: float


def step_of_unit(unit: Unit, steps: dict[int, tuple[Layer, ...]]) -> int | None:
    """The earliest step of the walk that runs a layer of the unit; None if the data never reaches it."""
    paths = {layer.path for layer in unit.layers}
    return min((number for number, layers in steps.items() if paths & {layer.path for layer in layers}), default=None)


def measure_sensitivity(job: Job, trials: Trials, anchors: frozenset[str] | None = None) -> Sensitivity:
    """Measures every choice of every unit on the `measure` part.

    With `anchors` (labels of choices), units inside blocks are measured at these choices only and the others follow
    from them by `inferred`, which is what makes large models affordable.

    Units that the data never reaches get zero divergence at every choice, so they take the fewest bytes.
    """
    steps = layers_by_step(job.walk, job.opened.hierarchy)
    members: dict[int, list[tuple[Unit, int]]] = {}
    for unit in job.units:
        step = step_of_unit(unit, steps)
        if step is not None:
            members.setdefault(step, []).extend((unit, c) for c in _to_measure(unit, anchors))
    asked = [
        Trial("measure", step=step, moves=({}, *(move(unit, c) for unit, c in members[step])))
        for step in sorted(members)
    ]
    known: dict[str, dict[int, Figures]] = {unit.name: {} for unit in job.units}
    control = 0.0
    for trial, (unmoved, *moved) in zip(asked, trials(asked, "sensitivity, block by block"), strict=True):
        control = max(control, unmoved[0])
        for (unit, c), figures in zip(members[trial.step], moved, strict=True):
            known[unit.name][c] = figures
    table, marks = [], []
    for unit in job.units:
        measured = known[unit.name]
        table.append([_figures(unit, c, measured, trials.bank) for c in range(len(unit.choices))])
        marks.append(tuple(c == 0 or c in measured for c in range(len(unit.choices))))
    kl, stderr, delta = (tuple(tuple(figures[i] for figures in row) for row in table) for i in range(3))
    return Sensitivity(kl, stderr, delta, tuple(marks), control)


def _to_measure(unit: Unit, anchors: frozenset[str] | None) -> list[int]:
    """The choices of a unit that are measured: all, or the anchors where it lies in a block and has them."""
    every = list(range(1, len(unit.choices)))
    chosen = [c for c in every if anchors is not None and unit.choices[c].label in anchors]
    return chosen if chosen and unit.block is not None else every


def _figures(unit: Unit, choice: int, known: Mapping[int, Figures], bank: Bank) -> Figures:
    if choice == 0 or not known:
        return [0.0, 0.0, 0.0]
    if choice in known:
        return known[choice]
    error = _error(unit, choice, bank)
    anchors = sorted((_error(unit, c, bank), figures) for c, figures in known.items())
    return [inferred(error, [(e, max(figures[i], 0.0)) for e, figures in anchors]) for i in range(3)]


def _error(unit: Unit, choice: int, bank: Bank) -> float:
    """The summed output error of a choice's candidates on the calibration data."""
    return sum(bank.error(path, scheme) for path, scheme in unit.choices[choice].schemes)


def inferred(error: float, anchors: Sequence[tuple[float, float]]) -> float:
    """The divergence at output error `error`, from measured (error, divergence) pairs by rising error.

    Between and beyond two anchors divergence is taken as a power of the error; with one, or where the anchors do not
    rise, as proportional to it (the second-order expansion of KL about the unchanged model).
    """
    (low_error, low), (high_error, high) = anchors[0], anchors[-1]
    if min(low, low_error) > 0 and high > low and high_error > low_error and error > 0:
        power = math.log(high / low) / math.log(high_error / low_error)
        return low * (error / low_error) ** power
    return high * error / high_error if high_error > 0 else high
