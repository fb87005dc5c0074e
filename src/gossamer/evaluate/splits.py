"""Disjoint parts of one set of examples, drawn by seed."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np

from gossamer.core.errors import DataError

SPREAD_SHARE = 3
"""A part that is spread takes at most one in this many sources of several examples."""


def sources(task: Any) -> Sequence[Hashable]:
    """What each example of a task is about (a picture, where questions share one); by default each stands alone."""
    found: Sequence[Hashable] = getattr(task, "sources", range(len(task)))
    return found


def draw(
    about: Sequence[Hashable],
    sizes: Mapping[str, int],
    seed: int,
    spread: Collection[str] = (),
    first: int | None = None,
) -> dict[str, list[int]]:
    """Disjoint, sorted index lists: for each name in order, `sizes[name]` of the examples, whose sources are `about`.

    Only the `first` sources count (None: all), and none is in two parts. A part takes sources in random order with all
    their examples; one named in `spread` takes an example from each of as many sources as it can, up to a third of them
    all. A part depends on `about`, `first`, `seed` and the sizes of the parts before it only, so the first part can be
    drawn again alone. Raises `DataError` if the examples do not suffice.
    """
    members: dict[Hashable, list[int]] = {}
    for index, source in enumerate(about):
        members.setdefault(source, []).append(index)
    random = np.random.default_rng(seed)
    keys = list(members)[:first]
    examples = sum(len(members[key]) for key in keys)
    order = [members[keys[place]] for place in random.permutation(len(keys))]
    most = max(1, len(order) // SPREAD_SHARE) if len(order) < examples else len(order)
    parts: dict[str, list[int]] = {}
    for name, size in sizes.items():
        taken: list[list[int]] = []
        while order and (len(taken) < min(size, most) if name in spread else sum(map(len, taken)) < size):
            taken.append(order.pop(0))
        rounds = zip_longest(*(random.permutation(source).tolist() for source in taken))
        chosen = chain.from_iterable(rounds) if name in spread else chain.from_iterable(taken)
        parts[name] = sorted(islice((index for index in chosen if index is not None), size))
        if len(parts[name]) < size:
            wanted = ", ".join(f"{size} for {name}" for name, size in sizes.items())
            raise DataError(
                f"the data holds {examples} examples and {sum(sizes.values())} are needed ({wanted}), no picture or "
                "text in two parts: give more data"
            )
    return parts
