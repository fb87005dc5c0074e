"""`gossamer detect`: where things are on pictures."""

from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.options import Json, ModelOrRun, Threads
from gossamer.cli.terminal import Result, job, show

EXAMPLE = 'gossamer detect tiny-ovd --image scene.png --query "red circle" --query "blue square"'


def command(
    model: ModelOrRun,
    image: Annotated[
        list[Path], typer.Option(metavar="FILE", show_default=False, help="A picture; may be given again.")
    ],
    query: Annotated[
        list[str], typer.Option(metavar="TEXT", show_default=False, help="What to look for; may be given again.")
    ],
    threshold: Annotated[float, typer.Option(metavar="P", help="Only boxes that are at least so sure.")] = 0.3,
    most: Annotated[int, typer.Option(metavar="N", help="At most N boxes of a picture.")] = 100,
    overlap: Annotated[
        float, typer.Option(metavar="IOU", help="Of one query's boxes that overlap by more, only the surest; 1: all.")
    ] = 0.5,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default=False, help="Where the pictures with their boxes go.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find what some words say on pictures."""
    with job(threads):
        from gossamer.operate.detect import Rule, detect

        result = detect(model, image, query, Rule(threshold, most, overlap), out)
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """A line for each box: picture, words, score, corners."""
    for picture in result["images"]:
        if not picture["found"]:
            print(f"{picture['image']}: nothing")
        for one in picture["found"]:
            corners = " ".join(f"{edge:.0f}" for edge in one["box"])
            print(f"{picture['image']}: {one['query']} {one['score']:.2f} at {corners}")
