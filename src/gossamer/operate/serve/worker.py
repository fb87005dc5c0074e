"""The thread that owns the model: it admits what waits, steps all that is under way, and says what has come."""

import threading
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gossamer.engine.decode import Batch, Event, Reading, Request
from gossamer.models.open import Opened
from gossamer.operate.cache.prefixes import PrefixStore, cannot_go_on
from gossamer.operate.writer import Writer

PREFILL_TOKENS = 4096
"""Prompts are read together up to so many tokens, padding included."""
PIECE_TOKENS = 256
"""Of a longer prompt so many tokens are read between two steps of what is under way, which waits for no more than that
(chunked prefill: Agrawal et al. 2024, Sarathi-Serve, arXiv:2403.02310)."""

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
        model = writer.opened.model
        keeps_part = writer.keeper is not None
        off = "with --kv, less than all of it is there" if keeps_part else cannot_go_on(model, writer.stepper_of)
        self.prefixes = PrefixStore(model, prefix_bytes, off)
        self._by_pieces = not off
        self._running: dict[int, Job] = {}
        self._entering: tuple[Job, Reading] | None = None
        self._batch = self._new_batch()
        self._image_clock = _Clock(writer.opened)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many requests are under way."""
        return len(self._running) + (self._entering is not None)

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
                self._changed.wait_for(lambda: self._waiting or self.running or self._stopping)
                if not self._waiting and not self.running:
                    return
                gone = {number for number, job in self._running.items() if job.cancelled}
                if self._entering is not None and self._entering[0].cancelled:
                    self._entering = None
                room = self._most - len(self._running) + len(gone)
                fresh = self._next_in_line(room) if self._entering is None else []
            if self._running:
                self._step(gone)
            if fresh and self._long(fresh[0]):
                self._begin(fresh[0])
            else:
                self._admit(fresh)
            if self._entering is not None:
                self._read_on(*self._entering)
            self._measure()

    def _measure(self) -> None:
        batch = self._batch.cache_bytes
        self.cache_bytes = batch + (self._entering[1].steps.cache_bytes if self._entering is not None else 0)
        for job in self._running.values():
            job.cache_bytes = batch // len(self._running)

    def _new_batch(self) -> Batch:
        opened = self._writer.opened
        return Batch(opened.model, opened.tokenizer, self._writer.stepper_of, self.prefixes)

    def _next_in_line(self, room: int) -> list[Job]:
        """Those that wait longest, as many as there is room for and can be read together."""
        found: list[Job] = []
        while self._waiting and len(found) < room:
            longest = max(job.prompt_tokens for job in [*found, self._waiting[0]])
            alone = self._long(self._waiting[0])
            if found and (alone or longest * (len(found) + 1) > PREFILL_TOKENS):
                break
            found.append(self._waiting.popleft())
            if alone:
                break
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

    def _long(self, job: Job) -> bool:
        """Whether a prompt is read by pieces: text alone, longer than one of them."""
        inputs = job.request.inputs
        if not self._by_pieces or job.prompt_tokens <= PIECE_TOKENS or inputs.keys() - {"input_ids", "attention_mask"}:
            return False
        return "attention_mask" not in inputs or bool(inputs["attention_mask"].all())

    def _begin(self, job: Job) -> None:
        job.started = time.monotonic()
        try:
            self._entering = job, self._batch.begin(self._numbers, job.request)
        except Exception as error:
            self._deliver([(job, error)])
        self._numbers += 1

    def _read_on(self, job: Job, reading: Reading) -> None:
        """Reads the next piece of a long prompt; after the last one it joins what is under way."""
        number, events = reading.row.number, []
        try:
            reading.read(PIECE_TOKENS if self._running else PREFILL_TOKENS)
            if reading.left:
                return
            self._entering = None
            self._running[number] = job
            events = self._batch.enter(reading)
        except Exception as error:
            self._entering = None
            self._running.pop(number, None)
            self._deliver([(job, error)])
            return
        job.reused = reading.reused
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
