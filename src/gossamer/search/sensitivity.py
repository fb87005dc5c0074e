"""Sensitivity: what each choice of each unit does to the output when everything else is left alone.

One walk through the unchanged model does it all: at every step each choice is swapped in from the bank while only the
rest of the model is run again, from remembered block inputs. A control with nothing swapped must give zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from gossamer.compress.calibrate import Stream, layers_by_step
from gossamer.compress.swap import Swap
from gossamer.core.progress import Progress
from gossamer.core.runfolder import RunFolder
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.search.bank import Bank
from gossamer.search.scorer import Scorer
from gossamer.search.units import Unit


@dataclass(frozen=True)
class Sensitivity:
    """`kl[u][c]`: divergence in nats per position of unit u at choice c; `stderr`, `loss_delta` likewise.

    `control` is the divergence with nothing swapped, measured through the same suffix runs.
    """

    kl: tuple[tuple[float, ...], ...]
    stderr: tuple[tuple[float, ...], ...]
    loss_delta: tuple[tuple[float, ...], ...]
    control: float


def step_of_unit(unit: Unit, steps: dict[int, tuple[Layer, ...]]) -> int | None:
    """The earliest step of the walk that runs a layer of the unit; None if the data never reaches it."""
    paths = {layer.path for layer in unit.layers}
    return min((number for number, layers in steps.items() if paths & {layer.path for layer in layers}), default=None)


def measure_sensitivity(
    folder: RunFolder,
    key: Any,
    model: nn.Module,
    hierarchy: Hierarchy,
    units: Sequence[Unit],
    scorer: Scorer,
    walk: Walk,
    bank: Bank,
    progress: Progress,
) -> Sensitivity:
    """Measures every choice of every unit. Steps of the walk whose results are on disk are not run again.

    Units that the data never reaches get zero divergence at every choice, so they take the fewest bytes.
    """
    steps = layers_by_step(walk, hierarchy)
    members: dict[int, list[Unit]] = {number: [] for number in steps}
    for unit in units:
        step = step_of_unit(unit, steps)
        if step is not None:
            members[step].append(unit)
    inputs = {
        number: [key, number, [[u.name, [c.label for c in u.choices]] for u in members[number]]] for number in steps
    }
    missing = [
        number
        for number, here in members.items()
        if here and not folder.file("sensitivity", inputs[number], ".json").exists()
    ]
    stream = Stream(walk, scorer.batches)
    found: dict[str, list[list[float]]] = {}
    control = 0.0
    for number in progress.track(sorted(steps), "sensitivity, block by block"):
        here = members[number]
        if here:
            compute = partial(_measure_units, model, here, stream, scorer, bank, progress)
            result = folder.step("sensitivity", inputs[number], compute)
            found.update(result["units"])
            control = max(control, result["control"])
        if missing and number < max(missing):
            stream.advance()
    nothing = [0.0, 0.0, 0.0]
    table = [found.get(unit.name, [nothing] * len(unit.choices)) for unit in units]
    kl, stderr, delta = (tuple(tuple(choice[i] for choice in row) for row in table) for i in range(3))
    return Sensitivity(kl, stderr, delta, control)


def _measure_units(
    model: nn.Module, units: Sequence[Unit], stream: Stream, scorer: Scorer, bank: Bank, progress: Progress
) -> Any:
    def outputs(number: int, batch: Batch) -> Any:
        return stream.walk.finish(stream.entry(number), batch.inputs)

    swap = Swap(model)
    control = scorer.score(outputs)
    found: dict[str, list[list[float]]] = {}
    for unit in progress.track(units, "choices of this block"):
        layers = {layer.path: layer for layer in unit.layers}
        rows = [[0.0, 0.0, 0.0]]
        for choice in unit.choices[1:]:
            swap.put_all(layers, bank.load(choice.schemes))
            score = scorer.score(outputs)
            rows.append([score.mean_kl, score.kl_stderr, score.mean_loss - scorer.baseline_loss])
        swap.restore()
        found[unit.name] = rows
    return {"units": found, "control": control.mean_kl}
