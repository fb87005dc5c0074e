"""`gossamer evaluate`: how good a model is."""

from gossamer.cli.options import Data, Json, Limit, Meters, Model, Seed, Task, Threads
from gossamer.cli.terminal import Result, figures, job, line, named, notes, show, spread

EXAMPLE = "gossamer evaluate tiny-vlm --task vqa --data scenes --limit 500"


def command(
    model: Model,
    task: Task = None,
    data: Data = None,
    limit: Limit = None,
    seed: Seed = 0,
    meters: Meters = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a model on a task.

    Every figure comes with its 95 % interval and the protocol behind it.
    """
    with job(threads) as progress:
        from gossamer.evaluate.job import evaluate_model

        result = evaluate_model(model, task=task, data=data, limit=limit, seed=seed, meters=meters, progress=progress)
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints the figures and the protocol."""
    figures("Measured", result["measured"], f"value [{spread(result['measured'])}]")
    notes(result)
    protocol = {key: value for key, value in result["protocol"].items() if value is not None and key != "sha256"}
    line("Protocol: " + ", ".join(f"{named(key)} {value}" for key, value in protocol.items()))
