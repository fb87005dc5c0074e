"""The disjoint parts of the data that a job works on."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gossamer.core.errors import DataError
from gossamer.evaluate.job import named_task
from gossamer.evaluate.splits import draw, sources
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task
from gossamer.models.open import Opened
from gossamer.search.request import OptimizeRequest, Sizes

BUILT_IN = {"scenes": ("val", "test")}
"""Built-in sets with splits of their own: the split that the search reads and the one that the final test reads."""

_PARTS = ("calibrate", "measure", "select", "confirm", "guard")
SPREAD = ("calibrate",)
"""Parts that take few examples of each source, for variety."""

WINDOW = 512
"""Tokens of the text windows that sizes count; of longer ones, fewer are read."""

SPARE = {"vqa": 20}
"""Examples of a built-in set that are read for each one that calibrates, as its source is not used again."""


@dataclass(frozen=True)
class Parts:
    """Tasks on disjoint examples.

    `name` and `data` are the task's; `settings` opened the searched set, from whose first `pool` sources (windows,
    pictures) all parts but the test were drawn.
    """

    name: str
    data: str
    settings: dict[str, Any]
    sha256: str
    calibrate: Task
    measure: Task
    select: Task
    confirm: Task
    guard: Task
    test: Task
    counts: dict[str, int]
    pool: int


def open_parts(request: OptimizeRequest, opened: Opened, sizes: Sizes) -> Parts:
    """Opens the request's data and draws every part by its seed.

    Where the data has no test split of its own and no test data are named, its last quarter is kept for the test.
    Parts shrink in proportion where the data are few. Raises `DataError` where even that is not possible.
    """
    name, data = named_task(opened, request.task, request.data)
    search_split, test_split = BUILT_IN.get(data, (None, None))
    wanted = {part: getattr(sizes, part) for part in _PARTS}
    settings: dict[str, Any] = {}
    if search_split is not None:
        settings = {"split": search_split, "limit": sum(wanted.values()) + SPARE.get(name, 0) * sizes.calibrate}
    pool = open_task(name, data, opened, **settings)
    share = min(1.0, WINDOW / int(pool.protocol.get("context_tokens", WINDOW)))
    wanted = {part: max(1, round(count * share)) for part, count in wanted.items()}
    tests = max(1, round(sizes.test * share))
    about = sources(pool)
    searched = list(dict.fromkeys(about))
    if test_split is not None or request.test_data is not None:
        source = request.test_data or data
        test = open_task(name, source, opened, split=test_split if source == data else None, limit=tests)
    else:
        searched = searched[: len(searched) - max(1, len(searched) // 4)]
        kept = set(searched)
        test = pool.subset([i for i, source in enumerate(about) if source not in kept][:tests])
    chosen = _drawn(about, searched, wanted, request.seed)
    if not chosen:
        raise DataError(
            f"{data} holds {len(pool)} examples, which is too few to search, confirm and test on disjoint parts: "
            "give at least 40, or name --test-data"
        )
    counts = {part: len(indices) for part, indices in chosen.items()}
    tasks = {part: pool.subset(indices) for part, indices in chosen.items()}
    return Parts(
        name, data, settings, str(pool.protocol["sha256"]), test=test, counts={**counts, "test": len(test)},
        pool=len(searched), **tasks,
    )  # fmt: skip


def _drawn(
    about: Sequence[Hashable], searched: Sequence[Hashable], wanted: Mapping[str, int], seed: int
) -> dict[str, list[int]]:
    """The examples of each part, from the sources in `searched`: as many as wanted or as there are; {} if too few."""
    kept = set(searched)
    share = min(1.0, sum(source in kept for source in about) / sum(wanted.values()))
    while min(counts := [int(count * share) for count in wanted.values()]) > 0:
        try:
            return draw(about, dict(zip(wanted, counts, strict=True)), seed, SPREAD, len(searched))
        except DataError:
            share *= 0.95
    return {}


def key_of(parts: Parts, sizes: Sizes, seed: int) -> dict[str, Any]:
    """What results on these parts depend on."""
    return {"task": parts.name, "sha256": parts.sha256, "counts": parts.counts, "sizes": asdict(sizes), "seed": seed}
