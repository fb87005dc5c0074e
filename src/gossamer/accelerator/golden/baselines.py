"""Integer arithmetic that others proposed, to measure ours against: I-BERT, I-ViT and the softmax of ITA.

Written from the papers and the behaviour of their public code, every floor included: I-BERT (Kim et al. 2021, arXiv
2101.01321), I-ViT (Li and Gu 2022, arXiv 2207.01405), ITA (Islamoglu et al. 2023, arXiv 2307.03493). A number is an
integer times a scale; scales are known beforehand, so that hardware holds the constants made of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, log, sqrt
from typing import NamedTuple

import numpy as np

from gossamer.accelerator.golden.arithmetic import Ints, rounding_shift


class Scaled(NamedTuple):
    """`integers` times `scale`."""

    integers: Ints
    scale: float


@dataclass(frozen=True)
class Baseline:
    """One design's arithmetic; what it does not have is None. Rows are the last axis.

    softmax: integers (…, S) and their scale → probabilities.
    gelu: integers and their scale → GELU.
    layer_norm: integers (…, d) → normalised, before gain and offset.
    """

    name: str
    softmax: Callable[[Ints, float], Scaled]
    gelu: Callable[[Ints, float], Scaled] | None = None
    layer_norm: Callable[[Ints], Scaled] | None = None


def polynomial_exponential(x: Ints, scale: float) -> Scaled:
    """I-BERT's exp of x ≤ 0: 2^−z times a polynomial of second degree on (−ln 2, 0]."""
    bits = 30
    a, b, c = 0.35815147, 0.96963238 / 0.35815147, 1 / 0.35815147
    octave = floor(-log(2) / scale)
    x = np.maximum(x, bits * octave)
    z = x // octave
    rest = x - octave * z
    value = (rest + floor(b / scale)) * rest + floor(c / scale**2)
    return Scaled(np.maximum(value << (bits - z), 0), a * scale**2 / 2.0**bits)


def polynomial_softmax(x: Ints, scale: float) -> Scaled:
    """I-BERT's softmax to unsigned 8 bits; its calibrated requantisation of exponentials to 16 bits has the range 1."""
    exponential = polynomial_exponential(x - x.max(-1, keepdims=True), scale)
    e = np.rint(exponential.integers * (exponential.scale * 32767)).astype(np.int64)
    factor = (1 << 32) // e.sum(-1, keepdims=True)
    return Scaled(e * factor >> 24, 2.0**-8)


def polynomial_gelu(x: Ints, scale: float) -> Scaled:
    """I-BERT's GELU, erf by a polynomial of second degree; x of 22 to 32 bits, of which it drops 14 on the way."""
    a, b, c = -0.2888, -1.769, 1 / -0.2888
    inner = scale / 1.4142
    low, high = floor(b / inner), floor(c / inner**2)
    erf = np.sign(x) * ((np.minimum(np.abs(x), -low) + low) ** 2 + high) >> 14
    step = inner**2 * a * 2.0**14
    return Scaled(x * (erf + floor(1 / step)), scale * step / 2)


def polynomial_layer_norm(x: Ints) -> Scaled:
    """I-BERT's layer norm: rounded mean, squares shifted so that their sum fits 32 bits, exact integer root."""
    y = x - np.rint(x.mean(-1, keepdims=True)).astype(np.int64)
    shift = 0
    while ((y >> shift) ** 2).sum(-1).max() >= 1 << 32:
        shift += 1
    variance = ((y >> shift) ** 2).sum(-1, keepdims=True)
    deviation = np.maximum(np.floor(np.sqrt(variance)).astype(np.int64) << shift, 1)
    return Scaled(y * ((1 << 31) // deviation) >> 1, sqrt(x.shape[-1]) / 2.0**30)


def shift_exponential(x: Ints, scale: float, bits: int = 15) -> Scaled:
    """I-ViT's exp of x ≤ 0: log2 e ≈ 1.4375, and 2^r ≈ 1 + r/2 on (−1, 0]."""
    x = x + (x >> 1) - (x >> 4)
    octave = floor(-1 / scale)
    x = np.maximum(x, bits * octave)
    z = x // octave
    rest = x - octave * z
    value = ((rest - 2 * octave) << (bits - z)) >> 1
    return Scaled(np.maximum(value, 0), scale / 2.0**bits)


def shift_softmax(x: Ints, scale: float) -> Scaled:
    """I-ViT's Shiftmax, to 7 bits."""
    e = shift_exponential(x - x.max(-1, keepdims=True), scale).integers
    total = np.minimum(e.sum(-1, keepdims=True), (1 << 31) - 1)
    return Scaled(e * (((1 << 31) - 1) // total) >> 24, 2.0**-7)


def shift_gelu(x: Ints, scale: float) -> Scaled:
    """I-ViT's ShiftGELU, x · sigmoid(1.702 x): the exponentials are relative to the row's maximum."""
    highest = x.max(-1, keepdims=True)
    e = shift_exponential(x - highest, 1.702 * scale, 23).integers
    one = shift_exponential(-np.maximum(highest, 0), 1.702 * scale, 23).integers
    total = np.clip(e + one, 1, (1 << 31) - 1)
    sigmoid = e * (((1 << 31) - 1) // total) >> 24
    return Scaled(x * sigmoid, scale * 2.0**-7)


def shift_layer_norm(x: Ints) -> Scaled:
    """I-ViT's layer norm: ten steps of Newton's method from 2^16 for the root."""
    y = x - np.rint(x.mean(-1, keepdims=True)).astype(np.int64)
    return Scaled(
        y * (((1 << 31) - 1) // newton_root((y * y).sum(-1, keepdims=True))) >> 1, sqrt(x.shape[-1]) / 2.0**30
    )


def newton_root(variance: Ints, steps: int = 10) -> Ints:
    """I-ViT's integer root, with as many steps as it takes, converged or not; at least 1."""
    root = np.full_like(variance, 1 << 16)
    for _ in range(steps):
        root = np.maximum((root + variance // root) >> 1, 1)
    return root


def octave_softmax(x: Ints, scale: float, chunk: int = 64) -> Scaled:
    """ITA's softmax to unsigned 8 bits: scores in whole octaves, sums corrected by shifts when the maximum grows."""
    multiplier = round(scale / log(2) * (1 << 16))
    octaves = np.clip(rounding_shift(x * multiplier, 16), -128, 127)
    highest = np.full((*x.shape[:-1], 1), -128, np.int64)
    total = np.zeros_like(highest)
    for start in range(0, x.shape[-1], chunk):
        part = octaves[..., start : start + chunk]
        now = np.maximum(highest, part.max(-1, keepdims=True))
        total = (total >> np.minimum(now - highest, 62)) + (256 >> np.minimum(now - part, 62)).sum(-1, keepdims=True)
        highest = now
    shifted: Ints = (65280 // total) >> np.minimum(highest - octaves, 62).astype(np.int64)
    return Scaled(shifted, 1 / 255)


BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("I-BERT", polynomial_softmax, polynomial_gelu, polynomial_layer_norm),
        Baseline("I-ViT", shift_softmax, shift_gelu, shift_layer_norm),
        Baseline("ITA", octave_softmax),
    )
}
