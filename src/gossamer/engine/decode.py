"""Writing token after token: read the prompts, then choose, say, step, until every request has ended.

This is the plain loop that any faster one must agree with: greedily it gives the tokens of transformers' `generate`.
Of a model's generation config only the end tokens count, neither its sampling nor tokens that it forces or forbids.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import nn

from gossamer.core.errors import DataError, ModelError, SettingError
from gossamer.engine.detokenise import TextStream
from gossamer.engine.sampling import Sampler, Sampling
from gossamer.engine.stepping import Inputs, Stepper, StepperOf, Steps, context_of

Finish = Literal["eos", "stop", "length", "context"]
"""Why a request ended: the model said so, a stop string came, `max_new_tokens` were written, the context is full."""


@dataclass(frozen=True)
class Request:
    """One prompt and how it is to be continued.

    `inputs` are the model's (see `Inputs`). It ends after `max_new_tokens`, at a token of `eos` (None: the model's
    own), or when its text holds one of `stops`.
    """

    inputs: Inputs
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 128
    stops: tuple[str, ...] = ()
    eos: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SettingError(f"max_new_tokens {self.max_new_tokens} is not possible: give 1 or more")


@dataclass(frozen=True)
class Event:
    """One token of one request: `request` is its place among the requests, `text` what can be said since its last
    event (see `TextStream`; nothing of the `eos` token), `finished` why it ends here, None if it goes on."""

    request: int
    token: int
    text: str
    finished: Finish | None = None


@torch.inference_mode()
def decode(
    model: nn.Module,
    requests: Sequence[Request],
    tokenizer: Any = None,
    stepper_of: StepperOf = Stepper,
) -> Iterator[Event]:
    """Continues all requests together, an event for each token as it comes; without a tokenizer, events have no text.
    `stepper_of` says what reads the tokens.

    Raises `ModelError` for a model that does not write, or whose logits are no numbers, and `DataError` for a prompt
    that leaves no room in the context, or for stop strings without a tokenizer.
    """
    batch = Batch(model, tokenizer, stepper_of)
    yield from batch.admit(dict(enumerate(requests)))
    while len(batch):
        yield from batch.step()


class Batch:
    """Requests that a model continues together while others come and go; an event names its request by the number that
    it was admitted with. `stepper_of` says what reads the tokens; `prefixes` remember what has been read. `reused` says
    of the requests admitted last how many tokens of their prompts were not read again.

    Raises `ModelError` for a model that does not write. After any other error than one of `admit` the batch is lost.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        stepper_of: StepperOf = Stepper,
        prefixes: "Prefixes | None" = None,
    ) -> None:
        check_writes(model)
        self.reused: dict[int, int] = {}
        self._prefixes = prefixes
        self._model, self._tokenizer, self._stepper_of = model, tokenizer, stepper_of
        self._rows: list[Row] = []
        self._stepper: Steps | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def cache_bytes(self) -> int:
        """Bytes that are kept of past tokens, padding included."""
        return 0 if self._stepper is None else self._stepper.cache_bytes

    @torch.inference_mode()
    def admit(self, requests: Mapping[int, Request]) -> list[Event]:
        """Reads prompts, apart from the requests that are under way, which they then join; their first tokens.

        Raises what `decode` raises; those under way are then as they were.
        """
        if not requests:
            return []
        fresh = self._stepper_of(self._model)
        rows = [Row(*each, self._model, self._tokenizer, fresh.endless) for each in requests.items()]
        begun = {row.number: self._begun(row) for row in rows}
        groups = [([reading.row], reading.steps, reading.read(None)) for reading in begun.values() if reading]
        unread = [row for row in rows if begun[row.number] is None]
        if unread:
            groups.append((unread, fresh, fresh.prefill([requests[row.number].inputs for row in unread])))
        self.reused = {number: reading.reused if reading else 0 for number, reading in begun.items()}
        return self._enter(groups)

    def begin(self, number: int, request: Request) -> "Reading":
        """A prompt of text alone that is going to be read piece by piece. Raises what `admit` raises."""
        fresh = self._stepper_of(self._model)
        row = Row(number, request, self._model, self._tokenizer, fresh.endless)
        return self._begun(row) or Reading(row, fresh)

    @torch.inference_mode()
    def enter(self, reading: "Reading") -> list[Event]:
        """Lets a prompt that has been read join the requests under way; its first token. Raises what `admit` raises."""
        self.reused = {reading.row.number: reading.reused}
        return self._enter([([reading.row], reading.steps, reading.logits)])

    def _begun(self, row: "Row") -> "Reading | None":
        """A sequence that need not read all of the row's prompt, if one is known."""
        known = self._prefixes and self._prefixes.find(row.inputs)
        return Reading(row, *known) if known else None

    def _enter(self, groups: Sequence[tuple[list["Row"], Steps, torch.Tensor]]) -> list[Event]:
        events = [event for some, _, logits in groups for event in self._take(some, logits)]
        for some, stepper, _ in groups:
            going = self._going_on(some, stepper)
            if going and self._stepper is not None:
                self._stepper.join(stepper)
            elif going:
                self._stepper = stepper
            self._rows += going
        return events

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """The next token of every request under way; those that end leave."""
        if self._stepper is None:
            return []
        logits = self._stepper.step([row.token for row in self._rows], [True] * len(self._rows))
        events = self._take(self._rows, logits)
        self._settle()
        return events

    @torch.inference_mode()
    def leave(self, numbers: Container[int]) -> None:
        """Ends these requests here, as far as they are under way."""
        self._settle(numbers)

    def _settle(self, gone: Container[int] = ()) -> None:
        self._rows = self._going_on(self._rows, self._stepper, gone)
        if not self._rows:
            self._stepper = None

    def _take(self, rows: Sequence["Row"], logits: torch.Tensor) -> list[Event]:
        check_numbers(self._model, logits)
        return [row.take(scores) for row, scores in zip(rows, logits, strict=True)]

    def _going_on(self, rows: list["Row"], stepper: Steps | None, gone: Container[int] = ()) -> list["Row"]:
        """The rows that have not ended and are not `gone`; if there are any, the stepper is left with just them."""
        places = [place for place, row in enumerate(rows) if row.finished is None and row.number not in gone]
        if stepper is not None and self._prefixes is not None:
            for place in sorted({*range(len(rows))} - {*places}):
                self._prefixes.keep(rows[place].inputs, rows[place].read, stepper, place)
        if stepper is not None and 0 < len(places) < len(rows):
            stepper.select(places)
        return [rows[place] for place in places]


class Reading:
    """The prompt of a row on its way into `steps`, which have read the first `reused` tokens of it already, apart from
    the requests under way: what is read at once is read sooner, but they wait for it. `logits` (1, vocabulary) follow
    the last token that was read."""

    def __init__(self, row: "Row", steps: Steps, reused: int = 0) -> None:
        self.row, self.steps, self.reused = row, steps, reused
        self._read = reused
        self.logits = torch.empty(0)

    @property
    def left(self) -> int:
        """How many tokens are not read yet."""
        return len(self.row.prompt) - self._read

    @torch.inference_mode()
    def read(self, most: int | None) -> torch.Tensor:
        """Reads the next tokens, at most so many, or all that are left. Returns `logits`."""
        end = len(self.row.prompt) if most is None else self._read + most
        piece = torch.tensor([self.row.prompt[self._read : end]])
        self.logits = self.steps.resume(piece) if self._read else self.steps.prefill([{"input_ids": piece}])
        self._read += piece.shape[1]
        return self.logits


class Prefixes(Protocol):
    """What remembers sequences that have been read, for prompts that begin alike."""

    def find(self, inputs: Inputs) -> tuple[Steps, int] | None:
        """A sequence of its own that has read the beginning of this prompt, and how many of its tokens: not all."""

    def keep(self, inputs: Inputs, tokens: Sequence[int], steps: Steps, row: int) -> None:
        """A sequence is about to leave: it had this prompt, and has read these tokens."""


def check_writes(model: Any) -> None:
    """Raises `ModelError` for a model that does not write."""
    if not getattr(model, "can_generate", bool)():
        raise ModelError(
            f"{type(model).__name__} does not write: a model with a language head that generates is needed"
        )


def check_numbers(model: Any, logits: torch.Tensor) -> None:
    """Raises `ModelError` unless all logits are numbers."""
    if logits.isnan().any():
        raise ModelError(f"{type(model).__name__} computes logits that are no numbers: its weights may be damaged")


class Row:
    """One request on its way: the law of its next tokens, and what ends it. `token` is its latest."""

    def __init__(self, number: int, request: Request, model: Any, tokenizer: Any, endless: bool = False) -> None:
        self.number, self.inputs = number, request.inputs
        self._eos = eos_of(model) if request.eos is None else request.eos
        self.prompt = prompt_ids(model, request.inputs)
        self.sampler = Sampler(request.sampling, self.prompt)
        if request.stops and tokenizer is None:
            raise DataError("stop strings need a tokenizer, and there is none: leave them out")
        self._stream = TextStream(tokenizer, request.stops) if tokenizer is not None else None
        room = None if endless else room_for(model, self.prompt)
        self._limit: Finish = "length" if room is None or request.max_new_tokens <= room else "context"
        self.room = request.max_new_tokens if room is None else min(room, request.max_new_tokens)
        self.token = 0
        self._written: list[int] = []
        self.finished: Finish | None = None

    @property
    def read(self) -> list[int]:
        """What the model has read of it: all but its latest token."""
        return [*self.prompt, *self._written[:-1]]

    def take(self, logits: torch.Tensor) -> Event:
        """Chooses the next token by logits (vocabulary,)."""
        return self.write(self.sampler.choose(logits))

    def write(self, token: int) -> Event:
        """Goes on with `token`, however it was chosen. `room` says how many more there may be."""
        self.sampler.note(token)
        self.token, self.room = token, self.room - 1
        self._written.append(token)
        text = ""
        if token in self._eos:
            self.finished = "eos"
        elif self._stream is not None:
            text = self._stream.push(token)
        if self.finished is None and self._stream is not None and self._stream.stopped:
            self.finished = "stop"
        elif self.finished is None and self.room == 0:
            self.finished = self._limit
        if self.finished is not None and self._stream is not None:
            text += self._stream.end()
            if self._stream.stopped and self.finished != "eos":
                self.finished = "stop"
        return Event(self.number, token, text, self.finished)


def prompt_ids(model: Any, inputs: Inputs) -> list[int]:
    """The tokens that stand before the first new one. Raises `DataError` if the inputs hold none."""
    name = "decoder_input_ids" if getattr(model.config, "is_encoder_decoder", False) else "input_ids"
    ids: list[int] = inputs[name][0].tolist() if name in inputs else []
    if not ids:
        raise DataError(f"the prompt has no tokens: {name} must hold at least one")
    return ids


def eos_of(model: Any) -> frozenset[int]:
    """The tokens by which the model says that it has ended; empty if it names none."""
    said = getattr(model.generation_config, "eos_token_id", None)
    said = getattr(model.config.get_text_config(decoder=True), "eos_token_id", None) if said is None else said
    return frozenset() if said is None else frozenset([said] if isinstance(said, int) else said)


def room_for(model: Any, prompt: Sequence[int]) -> int | None:
    """How many tokens an answer may have in the context, None for any number. Raises `DataError` if it has no room."""
    context = context_of(model)
    if context is None:
        return None
    if len(prompt) >= context:
        raise DataError(f"the prompt has {len(prompt)} tokens, and the model's context holds {context}: shorten it")
    return context - len(prompt)
