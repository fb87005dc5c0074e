"""`gossamer inspect`: what a model is made of."""

from gossamer.cli.options import Json, Model
from gossamer.cli.terminal import Result, job, line, named, quantity, show, table

EXAMPLE = "gossamer inspect tiny-vlm"


def command(model: Model, as_json: Json = False) -> None:
    """Show the parts of a model and their sizes.

    Parameters, bytes at stored precision, multiply-accumulates per token and per image. A config.json alone is
    enough; no weights are needed.
    """
    with job():
        from gossamer.models.inspect import inspect

        result = inspect(model)
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints the hierarchy, one row per modality, and the work of a forward pass."""
    rows = [
        (
            name,
            f"{part['blocks'] or ''}",
            quantity("", part["parameters"]),
            quantity("weight_bytes", part["weight_bytes"]),
        )
        for name, part in result["modalities"].items()
    ]
    total = ("total", f"{len(result['blocks'])}", quantity("", result["parameters"]))
    title = f"{result['model']}: {result['architecture']}, {result['stored_as']}"
    table(
        title,
        ("part", "blocks", "parameters", "weights"),
        [*rows, (*total, quantity("_bytes", result["weight_bytes"]))],
    )
    for key in ("macs_per_token", "macs_per_image", "macs_per_audio_window"):
        if result[key] is not None:
            line(f"{named(key)}: {quantity('', result[key])}")
