"""What a report is made from: the result of one `optimize` job, as data.

`Result.model_validate(dict)` accepts the JSON object that `optimize --json` prints plus the details listed here. Every
path in it may be relative to the run folder. Quantities: bytes are bytes, KL divergences and losses are nats per
counted position, latencies are milliseconds; a `Measure` carries its own 95 % interval (quartiles where
its method says so, as for latencies), count and method.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gossamer.core.budget import Budget
from gossamer.core.outcome import Measure


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the number must be finite: leave the entry out where nothing was measured")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
"""A number that can be plotted."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFacts(_Record):
    """The model the job ran on. `name` is what the user typed; `parameters` counts tied tensors once."""

    name: str
    family: str
    fingerprint: str
    parameters: int
    architecture: str = ""


class TaskFacts(_Record):
    """How quality was measured. `metric` is the key of the main figure in every `measured` mapping.

    `label` names it for people (`accuracy on closed questions`); `protocol` is the task's own description of data,
    counts and settings.
    """

    name: str
    metric: str
    higher_is_better: bool
    label: str = ""
    protocol: dict[str, Any] = {}


class Side(_Record):
    """One model's figures: measured ones with intervals, and estimates, which are labelled as such.

    Keys known to the table: the task's metric, `weight_bytes` (as the checkpoint stores them; of the baseline, at 16
    bits), `weight_disk_bytes` (in the files as they are), `weight_memory_bytes` (in memory while running),
    `saving_percent`, `loss`, `kl`, `latency_ms`, `prefill_ms`, `decode_ms`, `image_ms`, `tokens_per_s`,
    `peak_memory_bytes`, `disk_bytes`. Others are shown under their own name, with units taken from the suffix
    (`_bytes`, `_ms`, `_mj`, `_s`, `_percent`). `METRIC_change`, a paired difference of the task's metric, and
    `KEY_ratio`, a paired ratio of any figure to the baseline's, give the table's change column. `label` matters for
    `uniform` only.
    """

    label: str = ""
    measured: dict[str, Measure] = {}
    estimated: dict[str, Finite] = {}


class ParetoPoint(_Record):
    """One plan on the byte-loss plane. `loss` is in the unit that `Result.pareto_loss` names.

    `bits` is the mean over quantisable weights (codes only) or None. `measured` is False where the loss is the
    additive prediction. Exactly one point should be `chosen`.
    """

    weight_bytes: int
    loss: Finite
    kind: Literal["allocated", "uniform"]
    label: str
    bits: Finite | None = None
    low: Finite | None = None
    high: Finite | None = None
    measured: bool = True
    chosen: bool = False


class SensitivityPoint(_Record):
    """What quantising one unit alone, with everything else at 16 bits, does to the output.

    `unit` groups the points of one curve (a block or a fused set), `path` is its hierarchy path, `block` its block
    number or None outside blocks, `choice` the label of the setting (`gptq 3 g64`), `bits` its code width, `bytes`
    the unit's bytes as stored, `kl` the mean divergence from the baseline with its standard error, `loss_delta` the
    change of the task loss.
    """

    unit: str
    path: str
    modality: str
    block: int | None
    choice: str
    bits: int
    bytes: int
    kl: Finite
    kl_stderr: Finite = 0.0
    loss_delta: Finite = 0.0


class LayerChoice(_Record):
    """What the chosen plan does to one layer: `bits` 16 where it was left alone, `weight_bytes` as stored.

    A layer with no bytes of its own shares another's tensor.
    """

    path: str
    bits: int
    choice: str
    weight_bytes: int
    parameters: int


class AdditivityPoint(_Record):
    """A whole plan's loss as the sum of its units' losses (`predicted`) and as measured, same unit and data."""

    label: str
    predicted: Finite
    measured: Finite
    stderr: Finite = 0.0


class Additivity(_Record):
    """How far the losses of units add up. `unit` names what is compared (`KL, nats per answer token`)."""

    unit: str
    points: tuple[AdditivityPoint, ...] = ()


class Box(_Record):
    """A detected object in pixels of the sample's image, corners (x0, y0) top left and (x1, y1) bottom right."""

    x0: Finite
    y0: Finite
    x1: Finite
    y1: Finite
    label: str
    score: Finite | None = None


class Sample(_Record):
    """One example answered before and after. `image` is a PNG or JPEG file or a `data:image/...` URI.

    `before_right` and `after_right` are None where there is no right or wrong. Detection samples fill the box lists.
    """

    prompt: str
    before: str = ""
    after: str = ""
    expected: str | None = None
    before_right: bool | None = None
    after_right: bool | None = None
    image: str | None = None
    boxes_before: tuple[Box, ...] = ()
    boxes_after: tuple[Box, ...] = ()


class DataUse(_Record):
    """One use of data: `role` is what for (`calibration`, `search`, `confirmation`, `guard`, `final test`)."""

    role: str
    name: str
    n: int
    split: str = ""
    sha256: str = ""
    seed: int | None = None
    settings: dict[str, Any] = {}


class Note(_Record):
    """Something the reader must know.

    `guard`: outcome of the never-worse guard. `warning`: a limit or a surprise. `container`: a layer stored otherwise
    than the plan's bits. `note`: anything else. A plain string is taken as a `note`.
    """

    text: str
    kind: Literal["guard", "warning", "container", "note"] = "note"


def _notes(values: Any) -> Any:
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [{"text": value} if isinstance(value, str) else value for value in values]
    return values


class Result(_Record):
    """Everything the report shows. `plan`, `report` and `checkpoint` are paths in the run folder.

    `baseline` is the unchanged model at 16 bits, `measured` and `estimated` describe the reloaded checkpoint,
    `uniform` the best uniform setting at no more bytes, on the same data. `parity` is the largest absolute logit
    difference between Gossamer's weights and the reloaded checkpoint. `unmet` holds a sentence for each stated
    requirement that the result misses. `plan_yaml` is read from `plan` if empty.
    """

    plan: str
    report: str = "report.html"
    checkpoint: str
    model: ModelFacts
    task: TaskFacts
    budget: Budget
    baseline: Side
    measured: dict[str, Measure]
    estimated: dict[str, Finite] = {}
    uniform: Side | None = None
    pareto: tuple[ParetoPoint, ...] = ()
    pareto_loss: str = "KL from the 16-bit model, nats"
    parity: Finite
    sensitivity: tuple[SensitivityPoint, ...] = ()
    layers: tuple[LayerChoice, ...] = ()
    additivity: Additivity | None = None
    samples: tuple[Sample, ...] = ()
    notes: Annotated[tuple[Note, ...], BeforeValidator(_notes)] = ()
    unmet: tuple[str, ...] = ()
    data: tuple[DataUse, ...] = ()
    environment: dict[str, Any] = {}
    command: str = ""
    plan_yaml: str = ""
    seconds: Finite | None = Field(default=None, description="wall time of the job, of its last run if interrupted")
    peak_memory_bytes: int | None = Field(default=None, description="highest resident memory of that run's process")
