"""`gossamer inspect`: what a model is made of."""

from collections.abc import Sized

from gossamer.cli.options import Json, Model
from gossamer.cli.terminal import Result, job, quantity, show, table

EXAMPLE = "gossamer inspect tiny-vlm"


def command(model: Model, as_json: Json = False) -> None:
    """Show the parts of a model and their sizes.

    Parameters, bytes at stored precision, multiply-accumulates per token and per image. A config.json alone is enough; no weights are needed.
    """
    with job():
        from gossamer.models.inspect import inspect

        result = inspect(model)
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints the hierarchy, one row per modality."""
    rows = []
    for name, part in {**result["modalities"], "total": result}.items():
        blocks = part.get("blocks", "")
        count = len(blocks) if isinstance(blocks, Sized) and not isinstance(blocks, str) else blocks
        rows.append(
            (name, str(count), quantity("", part["parameters"]), quantity("weight_bytes", part["weight_bytes"]))
        )
    table(f"{result.get('family', 'model')}", ("part", "blocks", "parameters", "weights"), rows)
