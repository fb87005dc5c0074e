"""95 % intervals: Wilson for shares, percentile bootstrap for everything else, paired where two runs share examples.

The bootstrap draws whole examples with replacement, with a fixed seed, so the same numbers give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossamer.core.outcome import Measure

DRAWS = 2000
Z = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""

_CHUNK = 4_000_000

Array = NDArray[Any]


def wilson(successes: int, n: int) -> Measure:
    """A share `successes / n` with Wilson's score interval (E. B. Wilson, JASA 22, 1927). Needs n ≥ 1."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return Measure(value=share, low=low, high=high, n=n, method="wilson")


def resamples(n: int, seed: int = 0, draws: int = DRAWS) -> Iterator[NDArray[np.int64]]:
    """Index arrays (k, n) whose k add up to `draws`: each row is n examples drawn with replacement."""
    random = np.random.Generator(np.random.PCG64(seed))
    step = max(1, _CHUNK // max(1, n))
    for start in range(0, draws, step):
        yield random.integers(n, size=(min(step, draws - start), n))


def bootstrap_mean(values: ArrayLike, seed: int = 0, draws: int = DRAWS, over: str = "examples") -> Measure:
    """The mean of one number per example."""
    numbers = np.asarray(values, dtype=np.float64)
    return bootstrap_ratio(numbers, np.ones_like(numbers), seed=seed, draws=draws, over=over)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    transform: Callable[[Array], Array] = lambda ratio: ratio,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    over: str = "examples",
) -> Measure:
    """`transform(sum of numerators / sum of denominators)` over examples (n,), such as a mean loss per token.

    Draws in which no example has a denominator are left out. `over` names the examples in the method's text.
    """
    top, bottom = _columns(numerators, denominators)
    value = transform(np.asarray(top.sum() / bottom.sum()))
    drawn = []
    for rows in resamples(len(top), seed, draws):
        t, b = top[rows].sum(1), bottom[rows].sum(1)
        drawn.append(transform(t[b > 0] / b[b > 0]))
    return _measure(float(value), np.concatenate(drawn), len(top), f"bootstrap over {over}")


def paired_ratio(
    before: tuple[ArrayLike, ArrayLike],
    after: tuple[ArrayLike, ArrayLike],
    transform: Callable[[Array], Array] = lambda ratio: ratio,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    over: str = "examples",
) -> Measure:
    """`transform(ratio after) - transform(ratio before)`, both resampled with the same examples.

    Each argument is (numerators, denominators) over the same n examples in the same order.
    """
    top_0, bottom_0 = _columns(*before)
    top_1, bottom_1 = _columns(*after)
    if len(top_0) != len(top_1):
        raise ValueError(f"paired runs need the same examples, got {len(top_0)} and {len(top_1)}")

    def ratio(top: Array, bottom: Array) -> Array:
        return transform(top / bottom)

    value = ratio(top_1.sum(), bottom_1.sum()) - ratio(top_0.sum(), bottom_0.sum())
    drawn = []
    for rows in resamples(len(top_0), seed, draws):
        b_0, b_1 = bottom_0[rows].sum(1), bottom_1[rows].sum(1)
        kept = (b_0 > 0) & (b_1 > 0)
        t_0, t_1 = top_0[rows].sum(1), top_1[rows].sum(1)
        drawn.append(ratio(t_1[kept], b_1[kept]) - ratio(t_0[kept], b_0[kept]))
    return _measure(float(value), np.concatenate(drawn), len(top_0), f"paired bootstrap over {over}")


def paired_mean(
    before: ArrayLike, after: ArrayLike, seed: int = 0, draws: int = DRAWS, over: str = "examples"
) -> Measure:
    """The mean of `after - before`, one number per example in each."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired runs need the same examples, got {len(first)} and {len(second)}")
    found = bootstrap_mean(second - first, seed=seed, draws=draws, over=over)
    return found.model_copy(update={"method": f"paired {found.method}"})


def median_ratio(before: ArrayLike, after: ArrayLike, over: str = "runs") -> Measure:
    """The median of `after / before` over pairs of positive numbers that were measured together.

    Its interval lies between two of the sorted ratios and holds with at least 95 % whatever their distribution (the
    sign test turned round); with fewer than 6 pairs no interval can, and it spans all of them.
    """
    from scipy.stats import binom

    ratios = np.sort(np.asarray(after, dtype=np.float64) / np.asarray(before, dtype=np.float64))
    n = len(ratios)
    cut = max(0, int(binom.ppf(0.025, n, 0.5)) - 1)
    method = f"median of the ratios of paired {over}, sign test"
    return Measure(
        value=float(np.median(ratios)), low=float(ratios[cut]), high=float(ratios[n - 1 - cut]), n=n, method=method
    )


def percentile(value: float, drawn: ArrayLike, n: int, method: str) -> Measure:
    """A measure whose interval is the middle 95 % of bootstrap values that the caller made."""
    return _measure(value, np.asarray(drawn, dtype=np.float64), n, method)


def _columns(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Array, Array]:
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape or top.ndim != 1 or not len(top):
        raise ValueError(f"two equally long rows of numbers are needed, got shapes {top.shape} and {bottom.shape}")
    if bottom.sum() <= 0:
        raise ValueError("the denominators add up to nothing")
    return top, bottom


def _measure(value: float, drawn: Array, n: int, method: str) -> Measure:
    low, high = (float(x) for x in np.quantile(drawn, (0.025, 0.975))) if drawn.size else (value, value)
    return Measure(value=value, low=low, high=high, n=n, method=method)
