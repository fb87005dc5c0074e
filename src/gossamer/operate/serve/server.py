"""The server as a process: a socket, a model, and a stop that lets running requests end."""

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from gossamer.core.errors import DataError, SettingError
from gossamer.core.runfolder import checkpoint_of
from gossamer.operate.planned import cache_of, planned
from gossamer.operate.serve.app import Limits, Service, build_app
from gossamer.operate.writer import Engine, open_writer


def serve(
    ref: str,
    host: str,
    port: int,
    limits: Limits,
    say: Callable[[str, str], None],
    engine: Engine = "auto",
    on: str = "cpu",
    kv: str | None = None,
) -> None:
    """Serves the model, or the checkpoint of the run folder, `ref`, until SIGINT or SIGTERM; a second one ends it at
    once. `engine` and `on` say what runs it, and where (see `open_writer`), `kv` what is kept of past tokens (see
    `cache_of`).

    `port` 0 takes a free one. `say` is given the address once requests are answered, and what else is to be known.
    Raises `SettingError` for an address that cannot be had, and what `open_writer` does.
    """
    listener = listen(host, port)
    plan = planned(ref)
    service = Service(open_writer(checkpoint_of(ref), engine, on, cache_of(plan, kv)), name_of(ref), limits)
    address = listener.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    off = service.worker.prefixes.off if limits.prefix_bytes else ""
    note = f"; what has been read is not kept for prompts that begin alike: {off}" if off else ""
    if plan.speculation is not None:
        note += f"; the server does not draft: the plan's speculation ({plan.speculation.do}) is for generate"
    server = Server(service, lambda: say(f"http://{shown}:{address[1]}", note))
    server.run([listener])


class Server(uvicorn.Server):
    """uvicorn's server, which at a signal first lets the requests that are inside end, and answers others with 503."""

    def __init__(self, service: Service, started: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(build_app(service), log_level="warning", access_log=False, server_header=False)
        super().__init__(config)
        self._service, self._on_start = service, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says so."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What a signal does: the first begins the end, a second one is the end."""
        if self._service.draining:
            os._exit(128 + sig)
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to go."""
        return await super().on_tick(counter) or (self._service.draining and self._service.open == 0)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `SettingError` if the address cannot be had."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise SettingError(f"cannot listen at port {port} of {host} ({why}): give another --port or --host") from None


def hosts_of(host: str) -> tuple[str, ...]:
    """The names that browsers may use for a server at `host`: this machine's own where only it can be reached from."""
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = host == "localhost"
    return (host, "localhost", "127.0.0.1", "[::1]", "::1") if inside else ()


def keys_of(path: Path | None) -> tuple[str, ...]:
    """The API keys of a file, one a line. Raises `DataError` if it cannot be read or has none."""
    if path is None:
        return ()
    try:
        keys = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeError) as error:
        raise DataError(f"the API keys in {path} cannot be read ({error}): give a text file with one a line") from None
    if not keys:
        raise DataError(f"{path} holds no API key: write one a line")
    return keys


def name_of(ref: str) -> str:
    """What clients call the model: a path's last part, any other reference as it is."""
    return Path(ref).resolve().name if Path(ref).exists() else ref
