"""`gossamer estimate`: what a compression would cost and save, before it is done."""

from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.options import Json, Model
from gossamer.cli.terminal import Result, figures, job, line, show

EXAMPLE = "gossamer estimate tiny-vlm --bits 4 --group 64 --keep 'language.blocks.{0,5}.*=16'"


def command(
    model: Model,
    plan: Annotated[Path | None, typer.Option(metavar="PLAN.yaml", help="Estimate what this plan gives.")] = None,
    bits: Annotated[int | None, typer.Option(help="Or: every block at this many bits.")] = None,
    group: Annotated[int | None, typer.Option(help="Columns that share a scale; by default the whole row.")] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATHS=BITS", help="Layers at other bits, as in 'language.blocks.0.*=16'. Repeatable."),
    ] = None,
    no_scales: Annotated[bool, typer.Option("--no-scales", help="Leave scales and zero points out.")] = False,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="A device preset or YAML description.")] = None,
    as_json: Json = False,
) -> None:
    """Predict what a compression would save and cost.

    Weight bytes with scales and padding, saving against 16 bits, peak memory, disk and time of the job, all without
    doing it: a config.json is enough.
    """
    with job():
        from gossamer.dataflow.estimate import estimate

        result = estimate(
            model, plan=plan, bits=bits, group=group, keep=tuple(keep or ()), scales=not no_scales, device=device
        )
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints the estimates."""
    fits = "fits" if result["fits_memory"] else "does not fit"
    figures(f"{result['model']}: estimated, not measured", result["estimated"])
    line(f"The job {fits} into the memory of {result['device']}. Assumed: {'; '.join(result['assumptions'])}.")
