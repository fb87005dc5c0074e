"""Integer arithmetic of the engine, to the bit: what the RTL does, in NumPy.

One rounding everywhere: half up, `(x · m + 2^(s−1)) >> s`, then saturation. Nothing divides but one serial divider
per row of a softmax. Arrays are int64 unless said; shapes broadcast.

Sources: dyadic requantisation as in Jacob et al. 2018 (arXiv 1712.05877); base-2 softmax with a table of one octave
after Stevens et al. 2021 (Softermax, arXiv 2103.09301) with normalisation deferred past the product with the values
(Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135); 4-bit group multipliers as in
Dai et al. 2021 (VS-Quant, arXiv 2102.04503).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

OCTAVE_BITS = 6
OCTAVE = 1 << OCTAVE_BITS
"""Score steps to a factor of two."""
SCORE_HIGH = 32704
"""Scores saturate here, so that the running maximum, a multiple of `OCTAVE`, fits 16 bits."""
SCORE_LOW = -32768
EXPONENTIALS: Ints = np.round(255 * 2.0 ** (-np.arange(OCTAVE) / OCTAVE)).astype(np.int64)
"""255 · 2^(−i/64): the only table of the softmax."""
FADED = 9
"""Octaves below the maximum at which every exponential rounds to 0."""
NORM_FRACTION = 12
"""Fraction bits of a normalised value (20 bits, signed)."""
SEEDS: Ints = np.minimum(np.round(2.0**23 / np.sqrt((np.arange(64, 256) + 0.5) * 256)), 65535).astype(np.int64)
"""2^23 / sqrt(x) in the middle of [256·i, 256·(i + 1)), i = 64 … 255."""


def saturate(x: Ints, bits: int) -> Ints:
    """Clamped to signed `bits`."""
    return np.clip(x, -(1 << bits - 1), (1 << bits - 1) - 1)


def rounding_shift(x: Ints, shift: Ints | int) -> Ints:
    """`(x + 2^(shift−1)) >> shift`, half up; `shift` ≥ 0, 0 leaves x."""
    shift = np.asarray(shift, dtype=np.int64)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    return (x + half) >> shift


def requantise(x: Ints, multiplier: Ints | int, shift: Ints | int) -> Ints:
    """`x · multiplier / 2^shift`, rounded half up, not yet saturated.

    Args:
        x: 33 bits, signed (sum plus bias).
        multiplier: 0 … 65535, normalised to [2^15, 2^16) by `dyadic` for full precision.
        shift: 0 … 47.
    """
    return rounding_shift(np.asarray(x, np.int64) * multiplier, shift)


def dyadic(scale: float) -> tuple[int, int]:
    """Multiplier in [2^15, 2^16) and shift with multiplier / 2^shift ≈ `scale`, to 1 part in 2^16.

    `scale` ≤ 2^16; a scale below 2^−32 is (0, 0)-ish small: multiplier 0.
    """
    if not scale > 2.0**-32:
        return 0, 1
    exponent = int(np.floor(np.log2(scale)))
    multiplier, shift = round(scale * 2.0 ** (15 - exponent)), 15 - exponent
    if multiplier == 1 << 16:
        multiplier, shift = 1 << 15, shift - 1
    if shift < 0:
        raise ValueError(f"scale {scale} is too large for a multiplier of 16 bits")
    return multiplier, shift


@dataclass
class Softmax:
    """Scores of a row tile while they stream by, a chunk of columns at a time. Rows: R; chunk: D columns.

    `maximum` (R,) is the running maximum rounded up to a whole octave; `octaves` collects, for every chunk, the
    maximum that its exponentials refer to, in octaves.
    """

    maximum: Ints
    octaves: list[Ints]

    @classmethod
    def start(cls, rows: int) -> "Softmax":
        return cls(np.full(rows, SCORE_LOW, np.int64), [])

    def exponentials(self, scores: Ints, valid: NDArray[np.bool_]) -> Ints:
        """One chunk (R, D) of requantised scores → 8-bit exponentials (0 … 255) against the maximum so far."""
        scores = np.clip(scores, SCORE_LOW, SCORE_HIGH)
        highest = np.where(valid, scores, SCORE_LOW).max(axis=1)
        aligned = (highest + OCTAVE - 1) >> OCTAVE_BITS << OCTAVE_BITS
        self.maximum = np.maximum(self.maximum, aligned)
        self.octaves.append(self.maximum >> OCTAVE_BITS)
        distance = self.maximum[:, None] - scores
        shift = np.minimum(distance >> OCTAVE_BITS, FADED)
        return np.where(valid, rounding_shift(EXPONENTIALS[distance & (OCTAVE - 1)], shift), 0)


def settle(exponentials: Ints, octaves: Ints, last: Ints) -> Ints:
    """Exponentials (R, D) of a chunk, brought from its own maximum (R,) to the row's last one (R,): whole octaves."""
    return rounding_shift(exponentials, np.minimum(last - octaves, FADED)[:, None])


def reciprocal(total: Ints) -> tuple[Ints, Ints]:
    """`floor((2^(p+16) − 1) / total)` in [2^15, 2^16) and p = floor(log2 total), for total in 1 … 2^31 − 1; total 0
    is 1."""
    total = np.maximum(np.asarray(total, np.int64), 1)
    place = _log2(total)
    return ((np.int64(1) << (place + 16)) - 1) // total, place


def average(weighted: Ints, total: Ints, gain: int) -> Ints:
    """`weighted / total · 2^gain` to signed 8 bits: the weighted sum of values over the sum of weights.

    Args:
        weighted: (R, N), 32 bits signed.
        total: (R,) sum of exponentials.
        gain: 0 … 15.
    """
    inverse, place = reciprocal(total)
    shift = np.maximum(place + 16 - gain, 0)
    return saturate(rounding_shift(weighted * inverse[:, None], shift[:, None]), 8)


def rotate(pairs: Ints, table: Ints, shift: int) -> Ints:
    """Rotary embedding of adjacent columns. (…, 2i), (…, 2i+1) of 16 bits with cos, sin of 8 bits → 8 bits."""
    even, odd = pairs[..., 0::2], pairs[..., 1::2]
    cosine, sine = table[..., 0::2], table[..., 1::2]
    out = np.empty_like(pairs)
    out[..., 0::2] = saturate(rounding_shift(even * cosine - odd * sine, shift), 8)
    out[..., 1::2] = saturate(rounding_shift(even * sine + odd * cosine, shift), 8)
    return out


def inverse_root(variance: Ints) -> tuple[Ints, Ints]:
    """`r` (16 bits) and half-shift `h` with 1 / sqrt(variance) ≈ r / 2^(31 + h); variance in 1 … 2^60 − 1, 0 counts
    as 1.

    A table of 192 seeds and one Newton step: relative error below 1e-4.
    """
    variance = np.maximum(np.asarray(variance, np.int64), 1)
    even = (_log2(variance) & ~np.int64(1)) - 30
    x = np.where(even >= 0, variance >> np.maximum(even, 0), variance << np.maximum(-even, 0)) >> 16
    seed = SEEDS[(x >> 8) - 64]
    error = 3 * (np.int64(1) << 30) - x * (seed * seed >> 16)
    root = np.minimum((seed * (error >> 14)) >> 17, 65535)
    return root, even >> 1


def normalise(row: Ints, epsilon: int, centred: bool) -> Ints:
    """Rows (M, d) of 16 bits → (M, d) normalised, `NORM_FRACTION` fraction bits, 20 bits signed.

    `z = d·q − s`, `V = d·Σq² − s² + epsilon` with s = Σq (`centred`, layer norm: Ba et al. 2016) or 0 (RMS norm:
    Zhang and Sennrich 2019); the result is z / sqrt(V). `epsilon`: the model's times d² over the squared scale of q.
    """
    row = np.asarray(row, np.int64)
    width = row.shape[-1]
    total = row.sum(-1) if centred else np.zeros(row.shape[:-1], np.int64)
    variance = width * (row * row).sum(-1) - total * total + epsilon
    root, half = inverse_root(variance)
    first = (2 + half)[..., None]
    z = width * row - total[..., None]
    z = np.where(first >= 0, z >> np.maximum(first, 0), z << np.maximum(-first, 0))
    return saturate(rounding_shift(saturate(z, 22) * root[..., None], 17), 20)


def scale_norm(normalised: Ints, gain: Ints, offset: Ints, shift: int, bits: int) -> Ints:
    """`(normalised · gain + offset) / 2^shift`: gain 16 bits signed, offset 32 bits signed, to signed `bits`."""
    return saturate(rounding_shift(normalised * gain + offset, shift), bits)


def _log2(x: Ints) -> Ints:
    """floor(log2 x) of 1 ≤ x < 2^62."""
    place = np.floor(np.log2(x.astype(np.float64))).astype(np.int64)
    place = np.where((np.int64(1) << place) > x, place - 1, place)
    return np.where((np.int64(1) << np.minimum(place + 1, 62)) <= x, place + 1, place)
