"""From quantised weights to a checkpoint that has been proved: export, reload, compare."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.core.errors import PlanError, RequirementError
from gossamer.core.plan import Calibration
from gossamer.data.batch import Batch
from gossamer.evaluate.splits import draw, sources
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task
from gossamer.models.checkpoint import Stored, parity, save_compressed, settle
from gossamer.models.open import Opened
from gossamer.models.packed import QuantizedTensor
from gossamer.search.parts import SPREAD

BATCH = 16
"""Examples in a forward pass of the search and of calibration, at most."""

LOGIT_BYTES = 2**28
"""Bytes that one forward pass's logits may take."""

PARITY_LIMIT = 1e-3
"""Largest accepted difference of logits between Gossamer's weights and the reloaded checkpoint, float32."""


@dataclass(frozen=True)
class Finished:
    """A written checkpoint and its parity with the weights in memory."""

    stored: Stored
    parity: float


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
    drawn = draw(sources(pool), sizes, calibration.seed, SPREAD, calibration.pool)["calibrate"]
    return list(pool.subset(drawn).batches(batch_size(pool, opened)))


def batch_size(task: Task, opened: Opened) -> int:
    """Examples in a forward pass, so few that the logits of long texts over large vocabularies fit `LOGIT_BYTES`."""
    vocabulary = getattr(opened.config.get_text_config(), "vocab_size", 1)
    return max(1, min(BATCH, LOGIT_BYTES // (4 * vocabulary * int(task.protocol.get("context_tokens", 1)))))


def finish(
    opened: Opened,
    tensors: Mapping[str, QuantizedTensor],
    directory: Path,
    probe: Mapping[str, Any] | None,
) -> Finished:
    """Writes the checkpoint with these weights and checks it, as `prove` does."""
    return prove(opened, tensors, save_compressed(opened, tensors, directory), probe)


def prove(
    opened: Opened, tensors: Mapping[str, QuantizedTensor], stored: Stored, probe: Mapping[str, Any] | None
) -> Finished:
    """Checks that a written checkpoint holds these weights; the opened model keeps them.

    `probe` are the inputs on which logits are compared after reloading. Raises `RequirementError` where they differ
    by more than `PARITY_LIMIT`; the checkpoint is then removed.
    """
    settle(opened, tensors)
    difference = parity(opened, stored.directory, probe) if probe is not None else 0.0
    if not difference <= PARITY_LIMIT:
        shutil.rmtree(stored.directory, ignore_errors=True)
        raise RequirementError(
            f"export parity failed: logits differ by {difference:.3g} after reloading, "
            f"at most {PARITY_LIMIT} is accepted"
        )
    return Finished(stored, difference)
