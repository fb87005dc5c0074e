"""A server on a free port, in a thread."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI

from gossamer.models.open import Opened
from gossamer.operate.serve.app import Limits, Service
from gossamer.operate.serve.server import Server, listen
from gossamer.operate.writer import Writer


@dataclass
class Served:
    """A server that runs."""

    port: int
    service: Service
    server: Server
    thread: threading.Thread
    client: OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.client_with("none")

    def client_with(self, key: str) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of the answer to a body: bytes as they are, else as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {
            "Content-Type": "application/json",
            **{key.replace("_", "-"): value for key, value in headers.items()},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()

    def stop(self) -> None:
        self.server.handle_exit(15, None)
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextmanager
def running(model: Opened | Writer, name: str = "tiny", **limits: Any) -> Iterator[Served]:
    """A server of the model inside the block."""
    started = threading.Event()
    writer = model if isinstance(model, Writer) else Writer(model)
    service = Service(writer, name, Limits(**limits))
    listener = listen("127.0.0.1", 0)
    server = Server(service, started.set)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    served = Served(listener.getsockname()[1], service, server, thread)
    thread.start()
    assert started.wait(60)
    try:
        yield served
    finally:
        if not service.draining:
            served.stop()


@contextmanager
def before_each_pass(opened: Opened, do: Callable[..., None]) -> Iterator[None]:
    """Has `do` called with module, arguments and keyword arguments before the model computes."""
    handle = opened.model.register_forward_pre_hook(do, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
