"""From quantised weights to a checkpoint that has been proved: export, reload, compare."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gossamer.compress.apply import Applied
from gossamer.core.errors import DataError, GossamerError, PlanError, RequirementError
from gossamer.core.plan import Calibration
from gossamer.data.batch import Batch
from gossamer.evaluate.splits import draw, sources
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task
from gossamer.models.adapter import FOLDER, load_with_adapter, write_adapter
from gossamer.models.checkpoint import Stored, parity, save_compressed, settle
from gossamer.models.open import Opened
from gossamer.models.reloading import difference
from gossamer.models.structure import read_matrix, write_matrix
from gossamer.search.parts import SPREAD

BATCH = 16
"""Examples in a forward pass of the search and of calibration, at most."""

LOGIT_BYTES = 2**28
"""Bytes that one forward pass's logits may take."""

PARITY_LIMIT = 1e-3
"""Largest accepted difference of logits between Gossamer's weights and the reloaded checkpoint, float32."""


@dataclass(frozen=True)
class Finished:
    """A written checkpoint and its parity with the weights in memory, None where no inputs were there to compare on."""

    stored: Stored
    parity: float | None


def calibration_batches(calibration: Calibration | None, opened: Opened) -> list[Batch]:
    """The batches that a plan was calibrated on. Raises `PlanError` if the data are no longer the same."""
    if calibration is None:
        return []
    pool = open_task(calibration.task, calibration.data, opened, **calibration.settings)
    if pool.protocol["sha256"] != calibration.sha256:
        raise PlanError(
            f"the plan's calibration data {calibration.data} has changed since: its sha256 is "
            f"{str(pool.protocol['sha256'])[:12]}…, the plan names {calibration.sha256[:12]}…"
        )
    sizes = {"calibrate": calibration.samples}
    try:
        drawn = draw(sources(pool), sizes, calibration.seed, SPREAD, calibration.pool)["calibrate"]
    except DataError as error:
        raise PlanError(
            f"the plan's calibration.samples cannot be {calibration.samples} with pool {calibration.pool}: {error}"
        ) from error
    return list(pool.subset(drawn).batches(batch_size(pool, opened)))


def batch_size(task: Task, opened: Opened) -> int:
    """Examples in a forward pass, so few that the logits of long texts over large vocabularies fit `LOGIT_BYTES`."""
    vocabulary = getattr(opened.config.get_text_config(), "vocab_size", 1)
    return max(1, min(BATCH, LOGIT_BYTES // (4 * vocabulary * int(task.protocol.get("context_tokens", 1)))))


def finish(opened: Opened, applied: Applied, directory: Path, probe: Mapping[str, Any] | None) -> Finished:
    """Writes the checkpoint of a model that `applied` has compressed, and checks it as `prove` does.

    What makes up for rounding errors goes beside the checkpoint as an adapter. Other factors, and the zeros of pruned
    weights, have no form that public loaders read: they are stored within 16-bit weights or codes, and a note says what
    they would take otherwise.
    """
    opened = replace(opened, hierarchy=applied.hierarchy, config=opened.model.config)
    stored = save_compressed(opened, applied.tensors, directory)
    layers = {layer.path: layer for layer in applied.hierarchy.layers()}
    beside = {path: (layers[path], part) for path, part in applied.low_ranks.items() if path in applied.tensors}
    notes = [*stored.notes, *_unserved(applied, beside.keys())]
    if beside:
        try:
            size = write_adapter(beside, directory, directory.name)
        except GossamerError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        notes.append(
            f"{len(beside)} layers have a correction of low rank in {FOLDER}/ ({size:,} bytes), which peft loads over "
            "the base once that is unpacked: model.hf_quantizer.compressor.decompress_model(model)"
        )
        stored = replace(stored, weight_bytes=stored.weight_bytes + size)
    return prove(opened, applied, replace(stored, notes=tuple(notes)), probe)


def prove(opened: Opened, applied: Applied, stored: Stored, probe: Mapping[str, Any] | None) -> Finished:
    """Checks that a written checkpoint holds the weights of `applied`; the opened model keeps them.

    `probe` are the inputs on which logits are compared after reloading. Raises `RequirementError` where they differ
    by more than `PARITY_LIMIT`; the checkpoint is then removed.
    """
    settle(opened, applied.tensors)
    both = applied.tensors.keys() & applied.low_ranks.keys()
    corrected = [layer for layer in applied.hierarchy.layers() if layer.path in both]
    for layer in corrected:
        write_matrix(opened.model, layer, read_matrix(opened.model, layer) + applied.low_ranks[layer.path].dense())
    worst = None
    if probe is not None and corrected:
        worst = difference(opened.model, load_with_adapter(stored.directory), probe)
    elif probe is not None:
        worst = parity(opened, stored.directory, probe)
    if worst is not None and not worst <= PARITY_LIMIT:
        shutil.rmtree(stored.directory, ignore_errors=True)
        raise RequirementError(
            f"export parity failed: logits differ by {worst:.3g} after reloading, at most {PARITY_LIMIT} is accepted"
        )
    return Finished(stored, worst)


def _unserved(applied: Applied, beside: Collection[str]) -> list[str]:
    """What of the result the checkpoint holds in a larger form than it could take."""
    notes = []
    if applied.masks:
        kept = sum(int(mask.sum()) for mask in applied.masks.values())
        total = sum(mask.numel() for mask in applied.masks.values())
        bits = sum(
            int(mask.sum()) * (applied.tensors[path].scheme.bits if path in applied.tensors else 16) + mask.numel()
            for path, mask in applied.masks.items()
        )
        notes.append(
            f"{len(applied.masks)} pruned layers ({1 - kept / total:.0%} zeros) are stored with their zeros, as no "
            "container of compressed-tensors leaves them out; "
            f"a mask and the other values would take {bits // 8:,} bytes"
        )
    merged = [part for path, part in applied.low_ranks.items() if path not in beside]
    if merged:
        notes.append(
            f"{len(merged)} layers that are factors are stored multiplied out, as plain transformers has no factored "
            f"layers; their factors would take {sum(part.bytes for part in merged):,} bytes"
        )
    return notes
