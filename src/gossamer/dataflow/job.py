"""What compressing a model takes: a model of the job that `apply` runs, in bytes and seconds.

The job is open → calibrate block by block → quantise → export → reload and compare. Its constants were fitted on one
core of a server; `tests/dataflow/test_estimate.py` keeps measured jobs beside what is predicted for them.

**Peak memory** is the runtime (Python and its libraries) + the model in float32 + a byte for each quantised weight
+ the largest of what these stages need besides:

- *calibrate*: for every calibration vector the states that wait at a layer's door, three as wide as the model and one
  as wide as the widest layer, and the finished vision or audio tower's output twice; for every distinct input of a
  block's layers its Hessian and factor in float32, and three more matrices for the largest; one batch's logits;
- *export*: the quantised weights in float32 and all parameters at 16 bits;
- *compare*: the reloaded model in float32 and one batch's logits, four times.

**Time** is the start of Python and its libraries + operations / (rate × efficiency) + bytes / bandwidth + steps × time
of a step + bytes / disk rate. Operations: one pass of the calibration vectors through the blocks, three passes of one
batch through the whole model, the Hessians, their factorisation, the error diffusion and its loss. Bytes: the weights
once for each batch, and the search for the grid with all copies made on the way to disk and back. A step is one
column of one layer in the error diffusion, a handful of small operations whatever the layer's size.

Without calibration (round to nearest) there are no passes, Hessians, steps or comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gossamer.core.device import Device
from gossamer.models.hierarchy import Block, Hierarchy, Layer

if TYPE_CHECKING:
    from gossamer.models.open import Opened
    from gossamer.models.packed import Scheme
    from gossamer.models.work import Work

EFFICIENCY = 0.7
"""Share of the peak rate that the job's matrix products reach."""
RUNTIME_BYTES = 450_000_000
"""Resident size of Python with all that a job imports, before any model."""
START_S = 5.5
"""Seconds that Python takes to start and to import the libraries that every job needs."""
STEP_S = 25e-6
"""Seconds of one column in the error diffusion, beyond its matrix products."""
SWEEP_BYTES = 2_000
"""Memory traffic for each quantised weight: 32 grids tried on it, then rounded, packed, written and reloaded."""
BATCH, LOGIT_BYTES = 16, 2**28
"""Most samples that run at once, and most bytes that their logits take (`search/finish.py`)."""
TEXT_TOKENS, QUESTION_TOKENS = 512, 16
"""Tokens of a sample: of text, where the model has so many positions, and of a question beside an image."""


@dataclass(frozen=True)
class Calibration:
    """What the job calibrates on: `samples` of `tokens` text tokens each, with an image or sound each where taken.

    Without `tokens` they are what Gossamer's own tasks read: as in `TEXT_TOKENS`, `QUESTION_TOKENS`.
    """

    samples: int = 128
    tokens: int | None = None


@dataclass(frozen=True)
class Job:
    """The sizes that peak memory and time are computed from.

    `operations` counts a multiply-accumulate as two; `vectors` are the language's input vectors in all samples.
    """

    calibrated: bool
    samples: int
    batch: int
    vectors: int
    parameters: int
    quantised: int
    state_bytes: int
    hessian_bytes: int
    logit_bytes: int
    operations: float
    steps: int

    @classmethod
    def of(
        cls, opened: "Opened", schemes: "Mapping[str, Scheme]", calibration: Calibration, calibrated: bool = True
    ) -> "Job":
        """The job that puts `schemes` (layer path → grid) on a model; `calibrated`: by a technique that needs data."""
        from gossamer.models.work import active_share, work_of

        hierarchy = opened.hierarchy
        work = work_of(hierarchy, opened.config)
        each = vectors_of(opened, work, calibration)
        chosen = [layer for layer in hierarchy.layers() if layer.path in schemes]
        solved = [layer for layer in chosen if layer.kind != "embedding"] if calibrated else []
        tokens = each["language"]
        vocabulary = max((layer.rows for layer in _layers_of(hierarchy, "head")), default=0)
        batch = max(1, min(BATCH, LOGIT_BYTES // max(1, 4 * vocabulary * tokens)))
        passes = _passes(opened, work, each, calibration.samples, batch) if calibrated else 0.0
        return cls(
            calibrated=calibrated,
            samples=calibration.samples,
            batch=batch,
            vectors=calibration.samples * tokens,
            parameters=hierarchy.parameters,
            quantised=sum(layer.rows * layer.columns for layer in chosen),
            state_bytes=_state_bytes(opened, each, calibration.samples) if calibrated else 0,
            hessian_bytes=max((_hessian_bytes(block, solved) for block in hierarchy.blocks()), default=0),
            logit_bytes=4 * batch * tokens * vocabulary if calibrated else 0,
            operations=passes + _solving(hierarchy, solved, each, calibration.samples, active_share(opened.config)),
            steps=sum(layer.columns for layer in solved),
        )

    def peak_bytes(self) -> int:
        """Peak resident memory."""
        calibrate = self.state_bytes + self.hessian_bytes + self.logit_bytes
        export = 4 * self.quantised + 2 * self.parameters
        compare = 4 * self.parameters + 4 * self.logit_bytes if self.calibrated else 0
        return RUNTIME_BYTES + 4 * self.parameters + self.quantised + max(calibrate, export, compare)

    def seconds(self, device: Device, read: int, written: int) -> float:
        """Wall time on `device`, which reads a checkpoint of `read` bytes and writes one of `written`."""
        batches = -(-self.samples // self.batch) if self.calibrated else 0
        traffic = 4 * self.parameters * batches + SWEEP_BYTES * self.quantised
        return (
            START_S
            + self.operations / (EFFICIENCY * device.rate("float32"))
            + traffic / device.bandwidth_bytes_per_s
            + self.steps * STEP_S
            + (read + 2 * written) / device.disk_bytes_per_s
        )

    def assumptions(self, device: Device) -> list[str]:
        """What the figures take for granted, in words."""
        data = f"calibration on {self.samples} samples of {self.vectors // self.samples} tokens, {self.batch} at a time"
        return [
            data if self.calibrated else "no calibration: every weight is rounded to nearest",
            f"matrix products reach {EFFICIENCY:.0%} of {device.rate('float32') / 1e9:.0f} float32 GFLOP/s",
            "weight bytes are exact for the exported checkpoint; peak memory and time are a model, not a measurement",
        ]


def vectors_of(opened: "Opened", work: "Work", calibration: Calibration) -> dict[str, int]:
    """Modality → input vectors of one sample; `language` also stands for every part that is not listed."""
    text = opened.config.get_text_config() if hasattr(opened.config, "get_text_config") else opened.config
    positions = getattr(text, "max_position_embeddings", None)
    tokens = calibration.tokens
    if tokens is None:
        tokens = QUESTION_TOKENS if work.image_tokens else min(positions or TEXT_TOKENS, TEXT_TOKENS)
    found = {"language": tokens + (work.image_states or 0)}
    if work.image_tokens:
        found |= {"vision": work.image_tokens, "projector": work.image_states or 1}
    if work.audio_tokens:
        found["audio"] = work.audio_tokens
    return found


def _layers_of(hierarchy: Hierarchy, part: str) -> list[Layer]:
    return [layer for modality in hierarchy.modalities if modality.name == part for layer in modality.layers]


def _passes(opened: "Opened", work: "Work", each: dict[str, int], samples: int, batch: int) -> float:
    """Operations of all samples through the blocks once, and of a batch through the whole model three times."""
    language = next((part for part in opened.hierarchy.modalities if part.name in ("language", "text")), None)
    attention = 2 * each["language"] * _width(opened.config) * len(language.blocks if language else ())
    head = sum(layer.rows * layer.columns for layer in _layers_of(opened.hierarchy, "head"))
    towers = (work.per_image or 0) + (work.per_audio_window or 0)
    whole = towers + each["language"] * ((work.per_token or 0) + attention)
    inside = max(0, whole - each["language"] * head)
    return 2.0 * (samples * inside + 3 * batch * whole)


def _solving(hierarchy: Hierarchy, solved: list[Layer], each: dict[str, int], samples: int, active: float) -> float:
    """Operations on Hessians: the upper half of each, a Cholesky factor, the diffusion and two losses for a layer.

    An expert sees the `active` share of the vectors.
    """
    wanted = {layer.path for layer in solved}
    total = 0.0
    for modality in hierarchy.modalities:
        vectors = samples * each.get(modality.name, each["language"])
        layers = [layer for block in modality.blocks for layer in block.layers] + list(modality.layers)
        layers = [layer for layer in layers if layer.path in wanted]
        for columns, index in _inputs(layers):
            total += vectors * (1.0 if index is None else active) * columns**2 + columns**3 / 3
        total += sum(3.0 * layer.rows * layer.columns**2 for layer in layers)
    return total


def _state_bytes(opened: "Opened", each: dict[str, int], samples: int) -> int:
    """What the samples hold while one tower is walked through, with the finished towers' outputs."""
    held, most = 0, 0
    for modality in opened.hierarchy.modalities:
        if not modality.blocks:
            continue
        vectors = samples * each.get(modality.name, each["language"])
        widths = [min(layer.rows, layer.columns) for block in modality.blocks for layer in block.layers]
        widest = max((max(layer.rows, layer.columns) for block in modality.blocks for layer in block.layers), default=0)
        width = max(widths, default=0)
        most = max(most, held + 4 * vectors * (3 * width + widest))
        held += 4 * vectors * 2 * width
    return most


def _hessian_bytes(block: Block, solved: list[Layer]) -> int:
    """A Hessian and a factor for each distinct input of a block's layers, of experts for one at a time, and the work of
    gathering the largest."""
    wanted = {layer.path for layer in solved}
    inputs = _inputs([layer for layer in block.layers if layer.path in wanted])
    largest = max((columns for columns, _ in inputs), default=0)
    one = max((columns for columns, index in inputs if index is not None), default=0)
    return sum(8 * columns**2 for columns, index in inputs if index is None) + 8 * one**2 + 3 * 4 * largest**2


def _inputs(layers: list[Layer]) -> list[tuple[int, int | None]]:
    """(columns, number of the expert that reads them) of each distinct input: fused layers share one."""
    distinct = {(layer.unit, layer.columns): layer.index for layer in layers}
    return [(columns, index) for (_, columns), index in distinct.items()]


def _width(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for key in ("hidden_size", "d_model", "n_embd"):
        value = getattr(text, key, None)
        if isinstance(value, int):
            return value
    return 0
