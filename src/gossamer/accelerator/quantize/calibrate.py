"""Static scales from what a model does on calibration data.

One pass finds the largest absolute value of every point, a second one counts values in bins; from the counts the clip
with the least squared error is chosen among a few dozen, after the activation function where there is one (as in Nagel
et al. 2021, arXiv 2106.08295, section 3.1). In the residual stream errors count relative to their row, as norms
read it: the few tokens with massive activations (Sun et al. 2024, arXiv 2402.17762) would set the step of all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gossamer.accelerator.quantize.floating import ACTIVATIONS, Stack
from gossamer.accelerator.quantize.forward import Point, points
from gossamer.accelerator.quantize.model import Example, FloatModel, without_gradients
from gossamer.core.errors import DataError

OCTAVES, FINENESS = 22, 512
"""Bins: this many octaves below the largest value, each of so many bins."""
CLIPS = 0.85 ** torch.arange(0, 64, dtype=torch.float64)
"""Shares of the largest value that are tried: 1 … 3e-5."""
BINS = OCTAVES * FINENESS
GAINS = 8
"""Doublings 0 … 7 of averaged values."""
HEADROOM = 1.25
"""16-bit points hold this many times the chosen clip."""

Scales = dict[str, float]
"""Point → real value of one step."""


@dataclass
class Extremes:
    """A look that notes the largest absolute value of every point."""

    found: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, values: Tensor) -> Tensor:
        self.found[name] = max(self.found.get(name, 0.0), float(values.abs().max()))
        return values


@dataclass
class Histograms:
    """A look that counts values by sign and logarithm; of 16 bits, each by the inverse mean square of its row."""

    extremes: dict[str, float]
    bits: dict[str, int]
    counts: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, values: Tensor) -> Tensor:
        most = self.extremes[name]
        if most > 0:
            weight = torch.ones((), dtype=torch.float64)
            if self.bits[name] == 16:
                weight = 1 / values.double().square().mean(-1, keepdim=True).clamp(min=1e-12 * most**2)
            below = ((values.abs().double() / most).log2() * -FINENESS).clamp(0, BINS - 1).long()
            places = torch.where(values < 0, below + BINS, below)
            new = torch.bincount(places.flatten(), weight.expand(values.shape).flatten(), minlength=2 * BINS)
            self.counts[name] = self.counts[name] + new if name in self.counts else new
        return values


def calibrate(model: FloatModel, examples: Iterable[Example]) -> dict[str, Scales]:
    """The scales of every stack's points.

    Raises:
        DataError: no examples.
    """
    examples = list(examples)
    if not examples:
        raise DataError("calibration needs at least one example")
    extremes = {name: Extremes() for name in model.stacks}
    for example in examples:
        without_gradients(model, example, extremes)
    for name, seen in extremes.items():
        bad = next((point for point, most in seen.found.items() if not most < float("inf")), None)
        if bad is not None:
            raise DataError(f"{name}.{bad} is not finite on the calibration data: no scale holds it")
    histograms = {
        name: Histograms(seen.found, {point.name: point.bits for point in points(model.stacks[name])})
        for name, seen in extremes.items()
    }
    for example in examples:
        without_gradients(model, example, histograms)
    scales = {name: choose(stack, histograms[name]) for name, stack in model.stacks.items()}
    return shared(model, scales)


def shared(model: FloatModel, scales: dict[str, Scales]) -> dict[str, Scales]:
    """The same, with the vision stack's rows on the scale of the stream that they become part of."""
    wiring = model.wiring
    if wiring.vision is None or wiring.text is None:
        return scales
    rows = scales[wiring.text].get("entry", scales[wiring.text]["residual"])
    return {**scales, wiring.vision: {**scales[wiring.vision], "logits": rows}}


def choose(stack: Stack, seen: Histograms) -> Scales:
    """A scale for every point of a stack."""
    scales: Scales = {}
    for point in points(stack):
        most = max(seen.extremes.get(point.name, 0.0), 1e-8)
        counts = seen.counts.get(point.name)
        steps = (1 << point.bits - 1) - 1
        candidates = most * CLIPS / steps
        if point.name.endswith(".attended"):
            value = scales[point.name.removesuffix("attended") + "value"]
            candidates = value / 2.0 ** torch.arange(GAINS, dtype=torch.float64)
        scales[point.name] = float(candidates[0]) if counts is None else _best(point, counts, most, candidates)
        if point.bits == 16:
            scales[point.name] *= HEADROOM
    return scales


def _best(point: Point, counts: Tensor, most: float, candidates: Tensor) -> float:
    """The step with the least error."""
    centres = most * 2.0 ** -((torch.arange(BINS, dtype=torch.float64) + 0.5) / FINENESS)
    wanted = torch.cat([centres, -centres])
    held = 1 << point.bits - 1
    rounded = (wanted / candidates[:, None]).round().clamp(-held, held - 1) * candidates[:, None]
    if point.activation is not None:
        act = ACTIVATIONS[point.activation]
        rounded, wanted = act(rounded), act(wanted)
    errors = ((rounded - wanted).square() * counts).sum(1)
    return float(candidates[errors.argmin()])


def rounding(stack: Stack, scales: Mapping[str, float]) -> "Rounding":
    """The look that rounds every point as the integer model does."""
    return Rounding({point.name: (scales[point.name], point.bits) for point in points(stack)})


@dataclass(frozen=True)
class Rounding:
    """To the nearest step, saturated."""

    grids: dict[str, tuple[float, int]]

    def __call__(self, name: str, values: Tensor) -> Tensor:
        scale, bits = self.grids[name]
        return (values / scale).round().clamp(-(1 << bits - 1), (1 << bits - 1) - 1) * scale
