"""The thread that owns the model: it admits what waits, steps all that is under way, and says what has come."""

import threading
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gossamer.engine.decode import Batch, Event, Request
from gossamer.models.open import Opened
from gossamer.operate.cache.prefixes import PrefixStore, prefix_store
from gossamer.operate.writer import Writer

PREFILL_TOKENS = 4096
"""Prompts are read together up to so many tokens, padding included: what is under way waits for no more than that."""

Said = Event | Exception
"""What comes of a request: its tokens, or, once, why it ended without."""


@dataclass(eq=False)
class Job:
    """A request on its way. The times are `time.monotonic()`'s; `image_s` is what its images took to encode, with those
    of prompts read in one pass with it; `cache_bytes` its share of what the batch kept before the latest step, `reused`
    how many tokens of the prompt were not read again."""

    request: Request
    arrived: float
    queued: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    reused: int = 0
    image_s: float = 0.0
    cache_bytes: int = 0
    cancelled: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, those of images included."""
        return int(self.request.inputs["input_ids"].shape[1])


class Worker(threading.Thread):
    """Runs requests together, at most `most` at once; the others wait in the order in which they came.

    `deliver` is called in this thread with all that one pass of the model brought. `cache_bytes` are what the batch
    keeps of past tokens, `prefixes` what is kept, in up to `prefix_bytes`, of those that have left.
    """

    def __init__(
        self, writer: Writer, most: int, deliver: Callable[[Sequence[tuple[Job, Said]]], None], prefix_bytes: int = 0
    ) -> None:
        super().__init__(name="model", daemon=True)
        self._writer, self._most, self._deliver = writer, most, deliver
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._stopping = False
        self._numbers = 0
        self.cache_bytes = 0
        self.prefixes = (
            prefix_store(writer.opened.model, writer.stepper_of, prefix_bytes)
            if writer.keeper is None
            else PrefixStore(writer.opened.model, 0, "with --kv, less than all of it is there")
        )
        self._running: dict[int, Job] = {}
        self._batch = self._new_batch()
        self._image_clock = _Clock(writer.opened)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many requests are under way."""
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Puts a request behind those that wait."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this one any more: it leaves before the next step."""
        with self._changed:
            job.cancelled = True
            with suppress(ValueError):
                self._waiting.remove(job)

    def stop(self) -> None:
        """Lets the thread end when nothing waits or is under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def run(self) -> None:
        """The loop; not to be called."""
        with self._writer.torch_threads():
            self._loop()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._stopping)
                if not self._waiting and not self._running:
                    return
                gone = {number for number, job in self._running.items() if job.cancelled}
                fresh = self._next_in_line(self._most - len(self._running) + len(gone))
            if self._running:
                self._step(gone)
            self._admit(fresh)
            self._measure()

    def _measure(self) -> None:
        self.cache_bytes = self._batch.cache_bytes
        for job in self._running.values():
            job.cache_bytes = self.cache_bytes // len(self._running)

    def _new_batch(self) -> Batch:
        opened = self._writer.opened
        return Batch(opened.model, opened.tokenizer, self._writer.stepper_of, self.prefixes)

    def _next_in_line(self, room: int) -> list[Job]:
        """Those that wait longest, as many as there is room for and can be read together."""
        found: list[Job] = []
        while self._waiting and len(found) < room:
            longest = max(job.prompt_tokens for job in [*found, self._waiting[0]])
            if found and longest * (len(found) + 1) > PREFILL_TOKENS:
                break
            found.append(self._waiting.popleft())
        return found

    def _admit(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        numbered = dict(enumerate(jobs, self._numbers))
        self._numbers += len(jobs)
        for job in jobs:
            job.started = time.monotonic()
        self._running |= numbered
        try:
            with self._image_clock as clock:
                events = self._batch.admit({number: job.request for number, job in numbered.items()})
        except Exception as error:
            for number in numbered:
                del self._running[number]
            if len(jobs) == 1:
                self._deliver([(jobs[0], error)])
            else:  # one of them is at fault: each alone shows which
                for job in jobs:
                    self._admit([job])
            return
        for number, job in numbered.items():
            job.reused = self._batch.reused[number]
            job.image_s = clock.seconds if "pixel_values" in job.request.inputs else 0.0
        self._tell(events)

    def _step(self, gone: Container[int]) -> None:
        self._running = {number: job for number, job in self._running.items() if number not in gone}
        try:
            self._batch.leave(gone)
            events = self._batch.step()
        except Exception as error:  # the state of all is lost with it
            lost, self._running, self._batch = self._running, {}, self._new_batch()
            self._deliver([(job, error) for job in lost.values()])
            return
        self._tell(events)

    def _tell(self, events: Sequence[Event]) -> None:
        now = time.monotonic()
        said: list[tuple[Job, Said]] = []
        for event in events:
            job = self._running[event.request]
            job.first, job.last, job.tokens = job.first or now, now, job.tokens + 1
            said.append((job, event))
            if event.finished is not None:
                del self._running[event.request]
        self._deliver(said)


class _Clock:
    """How long the model's vision part runs inside a `with` block."""

    def __init__(self, opened: Opened) -> None:
        roots = [part.root for part in opened.hierarchy.modalities if part.name == "vision" and part.root]
        self._towers = [opened.model.get_submodule(root) for root in roots]
        self._handles: list[Any] = []
        self.seconds = 0.0

    def __enter__(self) -> "_Clock":
        self.seconds = 0.0
        for tower in self._towers:
            self._handles += [tower.register_forward_pre_hook(self._begin), tower.register_forward_hook(self._end)]
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _begin(self, *_: object) -> None:
        self.seconds -= time.monotonic()

    def _end(self, *_: object) -> None:
        self.seconds += time.monotonic()
