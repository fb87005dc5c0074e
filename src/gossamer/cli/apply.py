"""`gossamer apply`: a plan, or a uniform preset, replayed on a model."""

from typing import Annotated

import typer

from gossamer.cli.options import Data, Json, Model, On, Out, Task, Threads
from gossamer.cli.terminal import Result, figures, job, line, notes, show

EXAMPLE = "gossamer apply gptq-w4g64 tiny-vlm --out runs/w4"

PlanName = Annotated[
    str,
    typer.Argument(
        metavar="PLAN",
        show_default=False,
        help="A plan.yaml, or a preset: rtn-w4, gptq-w3g64, sparsegpt-2:4+gptq-w4, …",
    ),
]


def command(
    plan: PlanName,
    model: Model,
    out: Out,
    data: Data = None,
    task: Task = None,
    on: On = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Replay a plan, or a uniform preset, on a model.

    A plan is bound to the model it was made for; a preset goes with any model, and is calibrated on --data. The result
    is exported to --out.
    """
    with job(threads) as progress:
        from gossamer.search.jobs import apply_job

        result = apply_job(plan, model, out, progress, on, task, data)
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints the figures and where the checkpoint is."""
    figures("Applied", result["measured"])
    notes(result)
    line(f"checkpoint: {result['checkpoint']}")
