"""`gossamer serve`: a model behind OpenAI's API."""

from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.options import Engine, EngineName, Kv, ModelOrRun, On, Threads
from gossamer.cli.terminal import job, output
from gossamer.core.units import parse_bytes


def _room(text: str) -> int:
    return 0 if text == "0" else parse_bytes(text)


EXAMPLE = "gossamer serve tiny-vlm --port 8000"


def command(
    model: ModelOrRun,
    host: Annotated[str, typer.Option(metavar="HOST", help="The address to listen at; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0: a free one.")] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, metavar="N", help="Requests that are answered at once.")] = 8,
    queue: Annotated[int, typer.Option(min=0, metavar="N", help="More that wait; others get 429.")] = 64,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Keys, one a line, one of which a client must give."),
    ] = None,
    prefix_cache: Annotated[
        int,
        typer.Option(
            parser=_room,
            metavar="SIZE",
            help="Memory for what earlier requests have read, for prompts that begin alike; 0: off.",
        ),
    ] = "256MB",  # type: ignore[assignment]
    kv: Kv = None,
    engine: Engine = EngineName.auto,
    on: On = "cpu",
    threads: Threads = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API does, with a chat page at /.

    Ctrl-C or SIGTERM lets running requests end; a second one ends them. Of a run folder, what its plan says of
    the cache holds where --kv does not say otherwise.
    """
    with output() as say, job(threads):
        from gossamer.operate.serve.app import Limits
        from gossamer.operate.serve.server import hosts_of, keys_of, serve

        limits = Limits(
            batch=max_batch, queue=queue, prefix_bytes=prefix_cache, keys=keys_of(api_key_file), hosts=hosts_of(host)
        )

        def started(url: str, note: str) -> None:
            say(f"{model} is served at {url} (Ctrl-C ends it){note}\n")

        serve(model, host, port, limits, started, engine.value, on, kv)
