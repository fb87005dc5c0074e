"""How the report puts numbers into words: units by key, intervals, changes, and the summary sentence."""

from dataclasses import dataclass
from pathlib import PurePath

from gossamer.core.outcome import Measure
from gossamer.core.units import format_bytes
from gossamer.report.schema import Result, Side

MINUS, DASH = "\u2212", "\u2013"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

NAMES = {
    "weight_bytes": "Weights in the checkpoint",
    "weight_disk_bytes": "Weights on disk",
    "weight_memory_bytes": "Weights in memory, running",
    "disk_bytes": "Directory on disk",
    "peak_memory_bytes": "Peak memory",
    "saving_percent": "Saving",
    "accuracy": "Accuracy",
    "perplexity": "Perplexity",
    "ap": "Detection AP",
    "ap50": "Detection AP50",
    "kl": "KL from the 16-bit model",
    "loss": "Task loss",
    "bits": "Mean bits per weight",
    "latency_ms": "Latency",
    "engine_weight_bytes": "Decoder's weights, native engine",
    "engine_prefill_ms": "Prefill, native engine",
    "engine_decode_ms": "Decode, per token, native engine",
    "prefill_ms": "Prefill, plain transformers",
    "decode_ms": "Decode, per token, plain transformers",
    "image_ms": "Image encoding",
    "energy_mj": "Energy",
    "tokens_per_s": "Decode rate",
    "time_s": "Time",
}
_SHARES = ("accuracy",)
_SCORES = ("ap", "ap50")


@dataclass(frozen=True)
class Row:
    """One line of the before/after table, as text. `estimated` lines are model-based."""

    name: str
    before: str
    before_interval: str
    after: str
    after_interval: str
    uniform: str
    uniform_interval: str
    change: str
    change_interval: str
    estimated: bool


def title(result: Result) -> str:
    """The model's name: the last part of a path, hub ids whole."""
    path = PurePath(result.model.name)
    local = path.is_absolute() or path.parts[:1] in (("..",), (".",)) or path.suffix in (".gguf", ".bin")
    return path.name if local and path.name else result.model.name


def name_of(key: str) -> str:
    """A key as people read it: `peak_memory_bytes` → `Peak memory`."""
    if key in NAMES:
        return NAMES[key]
    for suffix in ("_bytes", "_ms", "_mj", "_s", "_percent"):
        key = key.removesuffix(suffix)
    return key.replace("_", " ").replace(".", " · ").capitalize()


def show(key: str, value: float) -> str:
    """A value with the unit that its key implies."""
    if key.endswith("_bytes"):
        return format_bytes(value)
    if key.endswith("_percent"):
        return f"{_number(value, 3)} %"
    if key.startswith(_SHARES):
        return f"{100 * value:.2f} %"
    if key in _SCORES:
        return f"{value:.3f}"
    if key == "perplexity":
        return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"
    if key == "bits":
        return f"{value:.2f}"
    if key in ("kl", "loss"):
        return f"{_number(value, 3)} nats"
    if key.endswith("_ms"):
        return f"{_number(value, 3)} ms"
    if key.endswith("_mj"):
        return f"{_number(value, 3)} mJ"
    if key.endswith("per_s"):
        return f"{_number(value, 3)} /s"
    if key.endswith("_s"):
        return duration(value)
    return _number(value, 4)


def interval(key: str, measure: Measure) -> str:
    """`91.2 – 93.4 %, n 2,000`, or nothing for counted values."""
    if measure.method == "exact" or measure.low == measure.high:
        return ""
    low, high = show(key, measure.low), show(key, measure.high)
    unit = high.rpartition(" ")[2] if " " in high else ""
    if unit and low.endswith(f" {unit}"):
        low = low.removesuffix(f" {unit}")
    return f"{low} {DASH} {high}, n {measure.n:,}"


def change(key: str, before: float, after: float) -> str:
    """How `after` differs from `before`: points for shares, differences for scores, percent for all else."""
    if key == "saving_percent":
        return ""
    if key.startswith(_SHARES):
        return f"{signed(100 * (after - before), 2)} points"
    if key in _SCORES:
        return signed(after - before, 3)
    return _percent(after / before) if before else ""


def _percent(ratio: float) -> str:
    """A ratio as the change that it is: `+12.5 %` for 1.125."""
    return f"{signed(100 * (ratio - 1), 1)} %"


def signed(value: float, digits: int) -> str:
    """A difference with its sign, the true minus included."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def power(value: float) -> str:
    """A number in scientific form, `3.8 × 10⁻⁶`; 0 as it is."""
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits} × 10{str(int(exponent)).translate(_RAISED)}"


def decade(exponent: int) -> str:
    """The label of 10 to a power: 0.01, 0.1, 1, 10, 100 as they are, `10⁻³` beyond."""
    return f"{10.0**exponent:g}" if -2 <= exponent <= 2 else f"10{str(exponent).translate(_RAISED)}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 100:
        return f"{_number(seconds, 2)} s"
    whole = round(seconds)
    if whole < 6000:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    if "e" in text and 1e-6 < abs(value) < 1e7:
        text = f"{value:,.0f}" if abs(value) >= 1 else f"{value:.7f}".rstrip("0")
    return text.replace("-", MINUS) if "e" not in text else text


def rows(result: Result) -> tuple[Row, ...]:
    """The before/after table: size first, then quality, then speed and memory, then whatever else was measured."""
    keys = [*result.baseline.measured, *result.measured, *(result.uniform.measured if result.uniform else ())]
    first = ["weight_bytes", result.task.metric, "kl", "loss"]
    order = {key: place for place, key in enumerate(dict.fromkeys([*first, *NAMES]))}
    known = sorted(dict.fromkeys(keys), key=lambda key: order.get(key, len(order)))
    after = Side(measured=result.measured, estimated=result.estimated)
    shown_elsewhere = {"saving_percent", f"{result.task.metric}_change", *(f"{key}_ratio" for key in keys)}
    measured = [_row(key, result, after, estimated=False) for key in known if key not in shown_elsewhere]
    estimates = sorted({*result.baseline.estimated, *result.estimated}, key=lambda key: order.get(key, len(order)))
    return (*measured, *(_row(key, result, after, estimated=True) for key in estimates))


def _row(key: str, result: Result, after: Side, *, estimated: bool) -> Row:
    def cell(side: Side | None) -> tuple[float | None, str, str]:
        if side is None:
            return None, "", ""
        if estimated:
            value = side.estimated.get(key)
            return value, "" if value is None else show(key, value), ""
        measure = side.measured.get(key)
        return (None, "", "") if measure is None else (measure.value, show(key, measure.value), interval(key, measure))

    old, before, before_interval = cell(result.baseline)
    new, now, now_interval = cell(after)
    _, uniform, uniform_interval = cell(result.uniform)
    if old is None and not estimated:
        before = {"kl": "0, by definition", "bits": "16"}.get(key, before)
    delta = change(key, old, new) if old is not None and new is not None else ""
    paired = None if estimated else result.measured.get(f"{key}_change")
    ratio = None if estimated else result.measured.get(f"{key}_ratio")
    spread = "" if paired is None or old is None else _change_interval(key, old, paired)
    if ratio is not None:
        delta, spread = _percent(ratio.value), f"{_percent(ratio.low).removesuffix(' %')} to {_percent(ratio.high)}"
    name = result.task.label if key == result.task.metric and result.task.label else name_of(key)
    return Row(
        name[:1].upper() + name[1:],
        before, before_interval, now, now_interval, uniform, uniform_interval, delta, spread, estimated,
    )  # fmt: skip


def _change_interval(key: str, before: float, paired: Measure) -> str:
    """The interval of a paired difference, in the terms of `change`."""
    low, high = (change(key, before, before + bound) for bound in (paired.low, paired.high))
    unit = high.rpartition(" ")[2] if " " in high else ""
    return f"{low.removesuffix(f' {unit}')} to {high}"


def summary(result: Result) -> str:
    """The whole report in one sentence, with only what was measured."""
    metric = result.task.metric
    what = result.task.label or name_of(metric).lower()
    sentence = title(result)
    size = result.measured.get("weight_bytes")
    old = result.baseline.measured.get("weight_bytes")
    if size is not None and old is not None and old.value > 0:
        smaller = 100 * (1 - size.value / old.value)
        sentence += (
            f" shrinks from {format_bytes(old.value)} at 16 bits to {format_bytes(size.value)}, {smaller:.1f} % smaller"
        )
    was, now = result.baseline.measured.get(metric), result.measured.get(metric)
    if was is not None and now is not None:
        joint = ", while" if size is not None and old is not None else ":"
        sentence += f"{joint} its {what} goes from {show(metric, was.value)} to {show(metric, now.value)}"
        sentence += _beside_uniform(result)
    return sentence + "."


def _beside_uniform(result: Result) -> str:
    if result.uniform is None:
        return ""
    metric = result.task.metric
    label = result.uniform.label or "the best uniform setting"
    label = label[:1].lower() + label[1:]
    other = result.uniform.measured.get(metric)
    ours, theirs = result.measured.get("kl"), result.uniform.measured.get("kl")
    if other is not None:
        return f" ({label} at no more bytes: {show(metric, other.value)})"
    if ours is None or theirs is None:
        return ""
    return f"; its KL from the 16-bit model is {show('kl', ours.value)}, that of {label} {show('kl', theirs.value)}"


def loss_percent(result: Result) -> float | None:
    """How far the main figure fell, as `Budget.max_loss_percent` counts it; None if a side was not measured."""
    was, now = result.baseline.measured.get(result.task.metric), result.measured.get(result.task.metric)
    if was is None or now is None:
        return None
    fall = was.value - now.value if result.task.higher_is_better else now.value - was.value
    if result.task.higher_is_better:
        return 100 * fall
    return 100 * fall / was.value if was.value else None
