"""An opened model and examples → the integer model, with what was lost on the way said."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gossamer.accelerator.golden.tensors import Tally
from gossamer.accelerator.integer_files import save_integer
from gossamer.accelerator.integer_model import IntegerModel
from gossamer.accelerator.quantize.balance import balance
from gossamer.accelerator.quantize.calibrate import Scales, calibrate
from gossamer.accelerator.quantize.convert import convert
from gossamer.accelerator.quantize.model import Example, FloatModel, without_gradients
from gossamer.accelerator.quantize.read import read_model, verify
from gossamer.accelerator.quantize.twin import twin
from gossamer.accelerator.quantize.weights import Precision
from gossamer.core.errors import DataError
from gossamer.core.files import refuse_foreign
from gossamer.core.progress import SILENT, Progress
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task
from gossamer.models.open import Opened, open_model

DEPTH = 8
"""Columns of a chunk where no engine is given."""
CHECKED = 8
"""Examples on which the result is compared with the model."""
FAR_OFF = 0.5
"""Relative error of the logits from which the integer model is of no use."""
ROTATE = (
    "The integer model is far off the model. If a few channels of its stream are a thousand times as large as others, "
    "turn the stream first: gossamer apply rotate MODEL --data DATA --out ROTATED, then quantise ROTATED."
)


@dataclass(frozen=True, eq=False)
class Quantized:
    """The integer model and the float one that it stands for, with the scales between them."""

    integer: IntegerModel
    floating: FloatModel
    scales: dict[str, Scales]
    precision: Precision

    def float_logits(self, example: Example) -> torch.Tensor:
        """Of the model as it is."""
        return without_gradients(self.floating, example)

    def integer_logits(self, example: Example, depth: int = DEPTH, tally: Tally | None = None) -> torch.Tensor:
        """Of the integer model, in real numbers."""
        return torch.from_numpy(self.integer.run(example, depth, tally)).double() * self.integer.scale

    def twin(self) -> Callable[[Example], torch.Tensor]:
        """Example → logits of the fake-quantised twin (see `twin.py`)."""
        return twin(self.floating, self.scales, self.precision)


def quantize(
    opened: Opened,
    examples: Sequence[Example],
    precision: Precision = Precision(),
    positions: int | None = None,
    part: str | None = None,
) -> Quantized:
    """The integer model of `opened`, calibrated on `examples`.

    Args:
        opened: a model of one of the architectures that `read_model` knows.
        examples: what it reads; the first is used to check that it has been read right.
        precision: of the blocks' weights.
        positions: rotary positions that are kept (default: the model's, 2048 at most).
        part: the tower of a model of two, `vision` or `text`.

    Raises:
        ModelError: an operator that the engine does not have, or numbers that it does not hold.
        DataError: no examples.
    """
    if not examples:
        raise DataError("calibration needs at least one example")
    floating = balance(read_model(opened, positions, part), examples)
    verify(floating, opened, examples[0], part)
    scales = calibrate(floating, examples)
    stacks = {name: convert(stack, scales[name], precision) for name, stack in floating.stacks.items()}
    integer = IntegerModel(stacks, floating.wiring, opened.source, opened.fingerprint)
    return Quantized(integer, floating, scales, precision)


def examples_of(task: Task, count: int) -> list[Example]:
    """The first `count` examples of a task, without padding."""
    found: list[Example] = []
    for batch in task.batches(1):
        inputs = batch.inputs
        example = {name: inputs[name] for name in ("pixel_values",) if name in inputs}
        if "input_ids" in inputs:
            real = inputs["attention_mask"][0].bool() if "attention_mask" in inputs else slice(None)
            example["input_ids"] = inputs["input_ids"][0][real]
        found.append(example)
        if len(found) == count:
            break
    return found


def quantize_job(
    model: str,
    out: Path,
    *,
    task: str | None = None,
    data: str | None = None,
    examples: int = 32,
    precision: Precision = Precision(),
    positions: int | None = None,
    part: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Quantises `model` on `examples` of `data`, writes it to `out`, and says how it fares on the first of them.

    Raises:
        GossamerError: a model, data or place that does not do.
    """
    refuse_foreign(out, "integer.json")
    opened = open_model(model)
    task = task or opened.defaults.get("task") or "text"
    data = data or opened.defaults.get("data")
    if data is None:
        raise DataError(f"{model} names no data of its own: give --data, what the model is calibrated on")
    progress.say("calibrating")
    found = examples_of(open_task(task, data, opened, limit=examples), examples)
    made = quantize(opened, found, precision, positions, part)
    progress.say("comparing")
    tally = Tally()
    differences = []
    for example in found[:CHECKED]:
        wanted = made.float_logits(example).double()
        error = made.integer_logits(example, tally=tally) - wanted
        differences.append(float(error.norm() / wanted.norm()))
    logit_error = sum(differences) / len(differences)
    save_integer(made.integer, out)
    return {
        "model": model,
        "fingerprint": opened.fingerprint,
        "data": data,
        "examples": len(found),
        "weight_bits": precision.bits,
        "stacks": {
            name: {"blocks": len(stack.blocks), "width": stack.width, "scale": stack.scale}
            for name, stack in made.integer.stacks.items()
        },
        "logit_error": logit_error,
        "saturated": tally.share,
        "saturated_most": dict(tally.worst()),
        "notes": [ROTATE] if logit_error > FAR_OFF else [],
        "out": str(out),
    }
