"""A batch of sequences in the native engine, with the methods of the torch `Stepper`."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.errors import DataError, ModelError
from gossamer.engine.native import abi
from gossamer.engine.native.library import Engine
from gossamer.engine.native.lower import HIDDEN, LAST, LOGITS, Program, angles
from gossamer.engine.stepping import Inputs, Stepper, collate, pad_of
from gossamer.engine.threads import torch_threads

BLOCK = 64
"""The cache grows by so many places."""
MOST_ROWS = 512
"""Tokens of a prompt that are read at once."""
_TEXT = {"input_ids", "attention_mask"}


@dataclass(frozen=True)
class Precision:
    """How inputs of weights are rounded. `wide`: to 16 bits, else to 8 as llama.cpp does. `exact`: so for any number of
    tokens, which makes a token's logits independent of who is read with it; else 16 and more are read as bfloat16."""

    wide: bool = True
    exact: bool = False
    half_cache: bool = True


@dataclass
class _Rows:
    """Tokens to be read, in any order of sequences: whose, where in its cache, at which position, seen up to where."""

    slots: list[int]
    places: list[int]
    until: list[int]
    positions: Tensor  # (1, rows), or (3, 1, rows)
    tokens: Tensor | None = None  # (rows)
    hidden: Tensor | None = None  # (rows, width) in their place

    def part(self, begin: int, end: int) -> "_Rows":
        cut = slice(begin, end)
        tokens, hidden = (None if each is None else each[cut] for each in (self.tokens, self.hidden))
        return _Rows(self.slots[cut], self.places[cut], self.until[cut], self.positions[..., cut], tokens, hidden)


class NativeStepper:
    """Reads through a `Program`. `model` is asked only for what stands before the first block where a prompt has more
    than text."""

    def __init__(self, program: Program, model: nn.Module, engine: Engine, precision: Precision | None = None) -> None:
        self._program, self._model, self._engine = program, model, engine
        self._precision = precision or Precision()
        self._lengths: list[int] = []
        self._positions: list[int] = []
        self._capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._buffers: dict[int, Tensor] = {}
        self._angles: list[tuple[Tensor, Tensor]] = []

    @property
    def endless(self) -> bool:
        """Whether a text may go on past the model's context: it may not."""
        return False

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values, room ahead included."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def prefill(self, prompts: Sequence[Inputs]) -> Tensor:
        """Reads the prompts. Returns logits (prompts, vocabulary) of the token after each, float32."""
        self._lengths, self._positions = [0] * len(prompts), [0] * len(prompts)
        found = []
        self._grow(len(prompts), max(prompt["input_ids"].shape[1] for prompt in prompts))
        for slot, prompt in enumerate(prompts):
            rows = self._text(slot, prompt) if set(prompt) <= _TEXT else self._captured(slot, prompt)
            self._lengths[slot] = len(rows.slots)
            self._positions[slot] = int(rows.positions[..., -1].max()) + 1
            found.append(self._read(rows, last_only=True))
        return torch.cat(found)

    def step(self, tokens: Sequence[int], moving: Sequence[bool]) -> Tensor:
        """Reads one token for each sequence. Returns logits (sequences, vocabulary) of the next, float32.

        Sequences that are not `moving` have ended: they are not read, and what stands in their rows is of no use.
        """
        going = [slot for slot, moves in enumerate(moving) if moves]
        logits = torch.zeros(len(tokens), self._program.vocabulary)
        logits[going] = self._extend(going, torch.tensor([[tokens[slot]] for slot in going]))[:, 0]
        return logits

    def extend(self, tokens: Tensor) -> Tensor:
        """Reads tokens (sequences, length) behind what each has read. Returns logits (sequences, length, vocabulary)
        after each, float32."""
        return self._extend(range(len(self._lengths)), tokens)

    def resume(self, tokens: Tensor) -> Tensor:
        """Reads tokens (sequences, length) behind what each has read. Returns logits (sequences, vocabulary) after the
        last, float32."""
        return torch.cat([self._extend([slot], row[None], last_only=True)[:, 0] for slot, row in enumerate(tokens)])

    def taken(self, row: int) -> "NativeStepper":
        """A copy of one sequence by itself, with no more room than it needs; the batch stays as it is."""
        twin = NativeStepper(self._program, self._model, self._engine, self._precision)
        twin._lengths, twin._positions = [self._lengths[row]], [self._positions[row]]
        twin._capacity = -(-self._lengths[row] // BLOCK) * BLOCK
        twin._keys = [keys[row : row + 1, :, : twin._capacity // 16].clone() for keys in self._keys]
        twin._values = [values[row : row + 1, :, : twin._capacity].clone() for values in self._values]
        return twin

    def rewind(self, count: int) -> None:
        """Forgets the latest `count` tokens of every sequence. Raises `ModelError` if one has not read so many."""
        if count > min(self._lengths):
            raise ModelError(f"cannot forget {count} tokens: a sequence has read {min(self._lengths)}")
        self._lengths = [length - count for length in self._lengths]
        self._positions = [position - count for position in self._positions]

    def select(self, rows: Sequence[int]) -> None:
        """The batch becomes these sequences; one may come again, or not at all."""
        self._lengths = [self._lengths[row] for row in rows]
        self._positions = [self._positions[row] for row in rows]
        self._keys = [keys[list(rows)] for keys in self._keys]
        self._values = [values[list(rows)] for values in self._values]

    def join(self, other: "NativeStepper") -> None:
        """The sequences of another stepper on the same program come after this one's."""
        own, more = len(self._lengths), len(other._lengths)
        self._lengths += other._lengths
        self._positions += other._positions
        self._grow(own + more, max(self._capacity, other._capacity))
        for mine, theirs in ((self._keys, other._keys), (self._values, other._values)):
            for one, two in zip(mine, theirs, strict=True):
                one[own : own + more, :, : two.shape[2]] = two[:more]

    def _extend(self, slots: Sequence[int], tokens: Tensor, last_only: bool = False) -> Tensor:
        count = tokens.shape[1]
        places = [self._lengths[slot] + ahead for slot in slots for ahead in range(count)]
        positions = [self._positions[slot] + ahead for slot in slots for ahead in range(count)]
        self._grow(len(self._lengths), max(places) + 1)
        rows = _Rows(
            [slot for slot in slots for _ in range(count)], places, places, torch.tensor([positions]), tokens.flatten()
        )
        for slot in slots:
            self._lengths[slot] += count
            self._positions[slot] += count
        return self._read(rows, last_only).reshape(len(slots), 1 if last_only else count, -1)

    def _text(self, slot: int, prompt: Inputs) -> _Rows:
        ids = prompt["input_ids"][0]
        if "attention_mask" in prompt:  # what it hides is not read at all
            ids = ids[prompt["attention_mask"][0].bool()]
        places = list(range(len(ids)))
        return _Rows([slot] * len(ids), places, places, torch.arange(len(ids))[None], ids)

    def _captured(self, slot: int, prompt: Inputs) -> _Rows:
        """What the model's own code hands to its first block, and at which positions: images are in it by then.

        Raises `DataError` for padding.
        """
        if not bool(prompt.get("attention_mask", torch.ones(1)).all()):
            raise DataError("a prompt with images cannot have padding: leave out what its attention_mask hides")
        with torch_threads(self._engine.threads):
            entry = entry_of(self._model, self._program.rotary, prompt)
        hidden, length = entry.hidden[0].float(), entry.hidden.shape[1]
        until = list(range(length))
        if entry.mask is not None:  # a mask's last open column
            seen = entry.mask[0, 0] if entry.mask.dtype == torch.bool else entry.mask[0, 0] >= 0
            until = [int(row.nonzero()[-1]) for row in seen]
        return _Rows([slot] * length, list(range(length)), until, entry.positions, hidden=hidden)

    def _grow(self, slots: int, places: int) -> None:
        """Makes room for so many sequences and places, keeping what is there."""
        if self._keys and slots <= self._keys[0].shape[0] and places <= self._capacity:
            return
        if places > self._capacity:  # half as much again: seldom moved, never much too large
            self._capacity = -(-max(places, self._capacity * 3 // 2) // BLOCK) * BLOCK
        dtype = torch.float16 if self._precision.half_cache else torch.float32
        program, old = self._program, (self._keys, self._values)
        shapes = list(zip(program.kv_heads, program.head_dim, strict=True))
        self._keys = [torch.zeros(slots, h, self._capacity // 16, d, 16, dtype=dtype) for h, d in shapes]
        self._values = [torch.zeros(slots, h, self._capacity, d, dtype=dtype) for h, d in shapes]
        for new, before in zip((self._keys, self._values), old, strict=True):
            for to, tensor in zip(new, before, strict=False):
                to[: tensor.shape[0], :, : tensor.shape[2]] = tensor

    def _read(self, rows: _Rows, last_only: bool = False) -> Tensor:
        """Logits after every row, or after the last one alone."""
        total = len(rows.slots)
        ahead = any(until > place for until, place in zip(rows.until, rows.places, strict=True))
        size = total if ahead else MOST_ROWS  # who sees what follows must be read together with it
        found = []
        for begin in range(0, total, size):
            part = rows.part(begin, min(begin + size, total))
            count = len(part.slots)
            self._reserve(count, 1 if last_only else count)
            call, kept = self._call(part)
            program = self._program
            if part.hidden is None and (total == 1 or not last_only):
                self._engine.run(self._program.whole, call)
                found.append(self._logits(count))
                continue
            if part.hidden is not None:
                self._buffers[HIDDEN][:count, : part.hidden.shape[1]] = part.hidden
            self._engine.run(program.body if part.hidden is not None else program.from_tokens, call)
            if last_only and begin + count < total:
                continue
            last = self._buffers[HIDDEN][count - 1 : count] if last_only else self._buffers[HIDDEN][:count]
            self._buffers[LAST][: len(last)].copy_(last)
            call.rows = len(last)
            self._engine.run(program.head, call)
            del kept
            found.append(self._logits(len(last)))
        return torch.cat(found)

    def _logits(self, rows: int) -> Tensor:
        program = self._program
        logits = self._buffers[LOGITS][:rows, : program.vocabulary].clone()
        return program.softcap * (logits / program.softcap).tanh() if program.softcap else logits

    def _reserve(self, rows: int, last: int) -> None:
        """Makes room for so many rows, and for the last states and logits of so many."""
        for name, width in self._program.widths.items():
            wanted = -(-(last if name in (LAST, LOGITS) else rows) // 32) * 32  # tiles of the matrix units are whole
            if name not in self._buffers or len(self._buffers[name]) < wanted:
                self._buffers[name] = torch.zeros(wanted, -(-width // 16) * 16)

    def _call(self, rows: _Rows) -> tuple[abi.Call, Any]:
        """The call's struct, and the tensors that it points to."""
        precision = self._precision
        call = abi.Call(
            rows=len(rows.slots),
            exact=precision.exact,
            wide=precision.wide,
            half_cache=precision.half_cache,
            capacity=self._capacity,
        )
        numbers = [torch.tensor(values, dtype=torch.int32) for values in (rows.slots, rows.places, rows.until)]
        call.slots, call.places, call.until = (each.data_ptr() for each in numbers)
        kept: list[Any] = [numbers]
        if rows.tokens is not None:
            tokens = rows.tokens.to(torch.int64).contiguous()
            call.tokens = tokens.data_ptr()
            kept.append(tokens)
        for place, (cosines, sines) in enumerate(self._angles_at(rows.positions)):
            call.cosines[place], call.sines[place] = cosines.data_ptr(), sines.data_ptr()
            kept += [cosines, sines]
        pointers = [(ctypes.c_void_p * len(each))(*(t.data_ptr() for t in each)) for each in (self._keys, self._values)]
        call.keys, call.values = (ctypes.addressof(each) for each in pointers)
        kept.append(pointers)
        for name, buffer in self._buffers.items():
            call.buffers[name] = abi.Buffer(buffer.data_ptr(), buffer.stride(0))
        return call, kept

    def _angles_at(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        program = self._program
        if positions.ndim == 3:
            return [angles(program.rotary, positions, table) for table in program.tables]
        most = int(positions.max()) + 1
        if not self._angles or len(self._angles[0][0]) < most:
            ahead = torch.arange(max(2 * most, 256))[None]
            self._angles = [angles(program.rotary, ahead, table) for table in program.tables]
        return [(cosines[positions[0]], sines[positions[0]]) for cosines, sines in self._angles]


@dataclass(frozen=True)
class Entry:
    """What reaches a decoder's first block: hidden states (1, length, width), its mask, and the positions."""

    hidden: Tensor
    mask: Tensor | None
    positions: Tensor


class _ReachedError(Exception):
    """The first block has been given its inputs."""


def entry_of(model: Any, rotary: nn.Module, prompt: Inputs) -> Entry:
    """Runs the model's own code up to its first decoder block."""
    decoder = next(part for part in model.modules() if getattr(part, "rotary_emb", None) is rotary)
    caught: dict[str, Any] = {}

    def at_rotary(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.setdefault("positions", args[1] if len(args) > 1 else kwargs["position_ids"])

    def at_block(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        caught.update(hidden=hidden, mask=kwargs.get("attention_mask"))
        raise _ReachedError

    hooks = [
        rotary.register_forward_pre_hook(at_rotary, with_kwargs=True),
        decoder.layers[0].register_forward_pre_hook(at_block, with_kwargs=True),
    ]
    try:
        Stepper(model).prefill([collate([prompt], pad_of(model))])
    except _ReachedError:
        return Entry(caught["hidden"], caught["mask"], caught["positions"].expand(*caught["positions"].shape))
    finally:
        for hook in hooks:
            hook.remove()
    raise ModelError(f"{type(model).__name__} never reached its first decoder block")
