"""`gossamer export`: a run's checkpoint, ready to ship."""

from gossamer.cli.options import Json, Out, Run
from gossamer.cli.terminal import Result, job, line, quantity, show

EXAMPLE = "gossamer export runs/tiny-vlm --out tiny-vlm-small"


def command(run: Run, out: Out, as_json: Json = False) -> None:
    """Copy a run's checkpoint, ready to ship.

    Plain transformers (and vLLM) load the directory.
    """
    with job():
        from gossamer.search.jobs import export_job

        result = export_job(run, out)
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints where the checkpoint is and its size."""
    size = result.get("measured", {}).get("weight_bytes")
    line(f"checkpoint: {result['checkpoint']}" + (f", {quantity('weight_bytes', size)}" if size else ""))
