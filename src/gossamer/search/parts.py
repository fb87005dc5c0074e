"""The disjoint parts of the data that a job works on."""

from dataclasses import asdict, dataclass
from typing import Any

from gossamer.core.errors import DataError
from gossamer.evaluate.job import named_task
from gossamer.evaluate.splits import draw
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task
from gossamer.models.open import Opened
from gossamer.search.request import OptimizeRequest, Sizes

BUILT_IN = {"scenes": ("val", "test")}
"""Built-in sets with splits of their own: the split that the search reads and the one that the final test reads."""

_PARTS = ("calibrate", "measure", "select", "confirm", "guard")


@dataclass(frozen=True)
class Parts:
    """Tasks on disjoint examples.

    `name` and `data` are the task's; `settings` opened the searched set, from whose first `pool` examples all parts
    but the test were drawn.
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
        settings = {"split": search_split, "limit": sum(wanted.values())}
    pool = open_task(name, data, opened, **settings)
    sha256 = str(pool.protocol["sha256"])
    indices = list(range(len(pool)))
    if test_split is not None or request.test_data is not None:
        source = request.test_data or data
        test = open_task(name, source, opened, split=test_split if source == data else None, limit=sizes.test)
    else:
        kept = len(pool) - max(1, len(pool) // 4)
        test = pool.subset(indices[kept:][: sizes.test])
        indices = indices[:kept]
    share = min(1.0, len(indices) / sum(wanted.values()))
    counts = {part: int(count * share) for part, count in wanted.items()}
    if min(counts.values()) < 1:
        raise DataError(
            f"{data} holds {len(pool)} examples, which is too few to search, confirm and test on disjoint parts: "
            "give at least 40, or name --test-data"
        )
    chosen = draw(len(indices), counts, request.seed)
    tasks = {part: pool.subset([indices[i] for i in chosen[part]]) for part in _PARTS}
    return Parts(
        name, data, settings, sha256, test=test, counts={**counts, "test": len(test)}, pool=len(indices), **tasks
    )


def key_of(parts: Parts, sizes: Sizes, seed: int) -> dict[str, Any]:
    """What results on these parts depend on."""
    return {"task": parts.name, "sha256": parts.sha256, "counts": parts.counts, "sizes": asdict(sizes), "seed": seed}
