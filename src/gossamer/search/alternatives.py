"""Would sparsity or low rank pay? Tried on a few units at equal packed bytes, so that the search need not carry them.

The yardstick is 3 bits in groups of 64: 3.25 bits a weight. Half the weights at 4 bits take as much (a bit mask, half
of the codes, the scales), and so do 2 bits with a correction whose factors take the bit that is left over. Each takes
one unit's place in the unchanged model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossamer.compress.calibrate import Stream, collect, layers_by_step
from gossamer.compress.chain import Chain
from gossamer.compress.decompose import Correction
from gossamer.compress.prune import SparseGpt
from gossamer.compress.quantize import Gptq
from gossamer.compress.swap import Swap, finite_weight
from gossamer.models.hierarchy import Layer
from gossamer.models.packed import fitting_group
from gossamer.search.job import Job
from gossamer.search.sensitivity import step_of_unit

TRIED = 8
"""Units that are tried, spread over the model."""

NAMES = {"sparse": "half of the weights at 4 bits", "low rank": "2 bits with a low-rank correction"}


@dataclass(frozen=True)
class Trial:
    """One unit: its divergence (nats) at 3 bits, and with each alternative in its place."""

    unit: str
    base: float
    others: dict[str, float]


def alternatives(job: Job) -> list[Trial]:
    """The trials, one for each of up to `TRIED` units inside blocks, on the `measure` part."""
    steps = layers_by_step(job.walk, job.opened.hierarchy)
    owners = {unit.name: step_of_unit(unit, steps) for unit in job.units}
    inside = [unit for unit in job.units if unit.block is not None and owners[unit.name] is not None]
    places = np.linspace(0, len(inside) - 1, min(TRIED, len(inside))).round().astype(int).tolist()
    chosen = sorted((inside[place] for place in places), key=lambda unit: owners[unit.name] or 0)

    def compute() -> Any:
        scorer = job.scorer("measure")
        calibration, measured = Stream(job.walk, job.calibration), Stream(job.walk, scorer.batches)
        found = []
        for unit in job.progress.track(chosen, "alternatives at equal bytes"):
            while measured.step < (owners[unit.name] or 0):
                calibration.advance()
                measured.advance()
            statistics = collect(job.opened.model, calibration, unit.layers)
            divergences = []
            for kind in ("base", *NAMES):
                swap = Swap(job.opened.model)
                for layer in unit.layers:
                    weight = finite_weight(job.opened.model, layer)
                    swap.put_values(layer, chain_of(kind, layer).run(weight, statistics.get(layer.path)).dense)
                divergences.append(scorer.score(measured.output).mean_kl)
                swap.restore()
            found.append([unit.name, *divergences])
        return found

    record = job.folder.step("alternatives", [job.key, [unit.name for unit in chosen]], compute)
    return [Trial(name, base, dict(zip(NAMES, others, strict=True))) for name, base, *others in record]


def chain_of(kind: str, layer: Layer) -> Chain:
    """What is done to a layer: `base`, or an alternative that takes no more bytes."""
    group = fitting_group(layer.columns, 64)
    if kind == "base":
        return Chain(quantise=Gptq(3, group))
    if kind == "sparse":
        return Chain(sparsify=SparseGpt(0.5), quantise=Gptq(4, group))
    rank = layer.rows * layer.columns // (16 * (layer.rows + layer.columns))
    return Chain(quantise=Gptq(2, group), correct=Correction(rank) if rank else None)


def does_it_pay(trials: Sequence[Trial]) -> list[str]:
    """What the trials say, in sentences; none without trials."""
    if not trials:
        return []
    sentences = []
    for kind, name in NAMES.items():
        better = sum(trial.others[kind] < trial.base for trial in trials)
        ratio = float(np.median([trial.others[kind] / max(trial.base, 1e-12) for trial in trials]))
        outcome = "it does not pay here" if 2 * better < len(trials) else "it may pay here"
        sentences.append(
            f"At the bytes of 3 bits in groups of 64, {name} loses {ratio:.2g} times as much (median of "
            f"{len(trials)} units) and is better on {better} of them: {outcome}; the search mixes bits alone."
        )
    return sentences
