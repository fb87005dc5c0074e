"""Models to serve, servers of them, and a gate that stops a model where a test wants it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from live_server import Served, before_each_pass, running

from gossamer.models.open import Opened, open_model


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers that end with the test."""
    with ExitStack() as held:
        yield lambda *given, **limits: held.enter_context(running(*given, **limits))


@pytest.fixture(scope="module")
def lm() -> Opened:
    return open_model("tiny-lm")


@pytest.fixture(scope="module")
def vlm() -> Opened:
    return open_model("tiny-vlm")


class Gate:
    """Lets passes of a model begin only while it is open."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.open, self.close = self._open.set, self._open.clear

    def wait(self, *_: object) -> None:
        assert self._open.wait(60)


@pytest.fixture
def gate(lm: Opened) -> Iterator[Gate]:
    """A gate before each pass of `lm`, open at first."""
    gate = Gate()
    gate.open()
    with before_each_pass(lm, gate.wait):
        yield gate
        gate.open()
