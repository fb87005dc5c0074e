"""SLEB: the blocks that a model misses least, found one after the other (arXiv 2402.09025)."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from gossamer.compress.structure.drop_block import without
from gossamer.compress.structure.outputs import log_probs_of, passed_on
from gossamer.core.errors import DataError, PlanError
from gossamer.core.progress import SILENT, Progress
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward
from gossamer.engine.walk import Walk
from gossamer.evaluate.divergence import kl_per_position
from gossamer.models.hierarchy import Hierarchy
from gossamer.models.surgery import Reshaped


def choose_blocks(
    model: nn.Module,
    hierarchy: Hierarchy,
    batches: Sequence[Batch],
    count: int,
    candidates: Collection[str],
    progress: Progress = SILENT,
) -> dict[str, float]:
    """The paths of `count` blocks to drop, in order, each with the loss of the model without it and those before.

    Each round drops, of the `candidates` (block paths) left, the block without which the predictions are closest to the
    unchanged model's: the loss is the mean Kullback–Leibler divergence over the positions of `batches`, in nats.
    Candidates are judged on the smaller model that the rounds before left, and each re-runs only what follows it:
    a round costs about half a forward pass for each block. A block that this family cannot do without is passed over.
    `model` is not changed. Raises `PlanError` if fewer than `count` blocks can go, `DataError` without data or for
    candidates that the data does not reach.
    """
    if not batches:
        raise DataError("choosing blocks needs calibration data: name a task and data")
    present, waiting = Reshaped(model, hierarchy), set(candidates)
    chosen: dict[str, float] = {}
    for _ in progress.track(range(count), "choose blocks to drop"):
        losses = _losses(model, present, batches, waiting)
        for path in sorted(losses, key=losses.__getitem__):
            waiting.discard(path)
            blocks = [block for block in present.hierarchy.blocks() if block.path == path]
            try:
                present = without(present.model, present.hierarchy, blocks, batches)
            except PlanError:
                continue
            chosen[path] = losses[path]
            break
        else:
            raise PlanError(f"only {len(chosen)} of the {count} blocks asked for can be dropped among {candidates}")
    return chosen


def _losses(model: nn.Module, present: Reshaped, batches: Sequence[Batch], waiting: set[str]) -> dict[str, float]:
    """Block path → the divergence from `model` of the `present` model without that block too."""
    walk = Walk(present.model, present.hierarchy, batches[0].inputs)
    reached = [number for number, stage in enumerate(walk.stages) if stage.block.path in waiting]
    if len(reached) < len(waiting):
        lost = waiting - {walk.stages[number].block.path for number in reached}
        raise DataError(f"the calibration data does not reach block {min(lost)}: use data that does, or leave it out")
    sums: dict[str, float] = {}
    positions = 0
    for batch in batches:
        with torch.no_grad():
            wanted = log_probs_of(forward(model, batch.inputs), batch)
        positions += len(wanted)
        entry = walk.start(batch.inputs) if reached else None
        for number in range(max(reached, default=-1) + 1):
            assert entry is not None
            path, output = walk.stages[number].block.path, walk.through(entry)
            if number in reached:
                found = walk.finish(entry, batch.inputs, passed_on(entry.hidden, output))
                gap = kl_per_position(wanted, log_probs_of(found, batch))
                sums[path] = sums.get(path, 0.0) + float(gap.sum(dtype=torch.float64))
            if number < max(reached):
                entry = walk.advance(entry, batch.inputs, output)
    return {path: total / positions for path, total in sums.items()}
