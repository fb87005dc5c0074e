"""Disjoint parts of one set of examples, drawn by seed."""

from collections.abc import Mapping

import numpy as np

from gossamer.core.errors import DataError


def draw(count: int, sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Disjoint, sorted index lists: for each name in order, `sizes[name]` of `count` examples.

    A part's members depend on `seed`, `count` and the sizes of the parts before it only, so the first part can be
    drawn again alone. Raises `DataError` if the examples do not suffice.
    """
    needed = sum(sizes.values())
    if needed > count:
        parts = ", ".join(f"{size} for {name}" for name, size in sizes.items())
        raise DataError(f"the data holds {count} examples and {needed} are needed ({parts}): give more data")
    order = np.random.default_rng(seed).permutation(count)
    ends = np.cumsum(list(sizes.values()))
    return {
        name: sorted(order[end - size : end].tolist()) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }
