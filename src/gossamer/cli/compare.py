"""`gossamer compare`: two models side by side, on the same examples in one process."""

from typing import Annotated

import typer

from gossamer.cli.options import Data, Json, Limit, Meters, Task, Threads
from gossamer.cli.terminal import Result, job, named, notes, quantity, show, spread, table

EXAMPLE = "gossamer compare tiny-vlm runs/tiny-vlm/checkpoint --limit 500"

Side = Annotated[str, typer.Argument(show_default=False, help="A model, as in the other verbs, or a run folder.")]


def command(
    a: Side,
    b: Side,
    task: Task = None,
    data: Data = None,
    limit: Limit = None,
    meters: Meters = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure two models on the same examples.

    Both sides run in one process on equal data; the interval of the difference is paired.
    """
    with job(threads) as progress:
        from gossamer.search.jobs import compare_job

        result = compare_job(a, b, task=task, data=data, limit=limit, meters=meters, progress=progress)
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints both sides and their difference."""
    sides = [{**result[name]["measured"], "weight_bytes": result[name]["weight_bytes"]} for name in ("a", "b")]
    ratios = result.get("ratio", {})
    paired = {key: quantity(key, value) for key, value in result["difference"].items()}
    paired |= {key: quantity("ratio", value) for key, value in ratios.items()}
    head = "B - A, paired; times: B / A" if ratios else "B - A, paired"
    rows = [
        (named(key), *(quantity(key, side.get(key, "")) for side in sides), paired.get(key, ""))
        for key in dict.fromkeys([*sides[0], *sides[1]])
    ]
    table(f"Measured [{spread(sides[0])}]", ("", "A", "B", head), rows)
    notes(result)
