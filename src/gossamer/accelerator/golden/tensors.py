"""An integer model run by whole tensors: the engine's numbers without its steps.

Rows are taken together, so accuracy on thousands of tokens takes seconds; the result is that of the engine, bit
for bit. The softmax alone depends on the engine's shape: its running maximum moves chunk by chunk of `depth`
columns. Products run in floating point where every partial sum is exact: below 2^24 in 32 bits, 2^53 in 64.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gossamer.accelerator import integer
from gossamer.accelerator.golden.arithmetic import (
    EXPONENTIALS,
    FADED,
    OCTAVE,
    OCTAVE_BITS,
    SCORE_HIGH,
    SCORE_LOW,
    Ints,
    average,
    normalise,
    requantise,
    rotate,
    rounding_shift,
    saturate,
    scale_norm,
)
from gossamer.core.errors import SettingError

_Part = TypeVar("_Part")


@dataclass
class Tally:
    """How many values were made and how many saturated, by place."""

    made: dict[str, int] = field(default_factory=dict)
    saturated: dict[str, int] = field(default_factory=dict)

    def add(self, place: str, values: Ints, bits: int) -> None:
        """Counts the `values` that signed `bits` do not hold."""
        outside = np.count_nonzero((values < -(1 << bits - 1)) | (values >= 1 << bits - 1))
        self.made[place] = self.made.get(place, 0) + values.size
        self.saturated[place] = self.saturated.get(place, 0) + int(outside)

    @property
    def share(self) -> float:
        """Saturated values among all."""
        return sum(self.saturated.values()) / max(1, sum(self.made.values()))

    def worst(self, count: int = 5) -> list[tuple[str, float]]:
        """The places with the largest shares above 0."""
        shares = [(place, self.saturated[place] / made) for place, made in self.made.items() if self.saturated[place]]
        return sorted(shares, key=lambda each: -each[1])[:count]


@dataclass
class Cache:
    """What a stack remembers of the rows before: keys and values (kv_heads, rows, head) of every block's attention."""

    keys: dict[str, Ints] = field(default_factory=dict)
    values: dict[str, Ints] = field(default_factory=dict)
    rows: int = 0

    def append(self, place: str, keys: Ints, values: Ints) -> tuple[Ints, Ints]:
        """All keys and values, the new ones last."""
        if place in self.keys:
            keys = np.concatenate([self.keys[place], keys], 1)
            values = np.concatenate([self.values[place], values], 1)
        self.keys[place], self.values[place] = keys, values
        return keys, values


def look_up(stack: integer.Stack, tokens: Iterable[int]) -> Ints:
    """Rows (S, width) of the stack's table, 16 bits, before positions."""
    if stack.table is None:
        raise SettingError(f"stack {stack.name} has no table of tokens: give rows")
    return stack.table[np.fromiter(tokens, np.int64)].astype(np.int64)


def patch_rows(stack: integer.Stack, patches: NDArray[np.int8]) -> Ints:
    """Rows (prefix + P, width), 16 bits, of 8-bit patches (P, K), before positions."""
    if stack.patch is None:
        raise SettingError(f"stack {stack.name} reads no patches: give tokens or rows")
    rows = saturate(linear(stack.patch, patches.astype(np.int64)), 16)
    return rows if stack.prefix is None else np.concatenate([stack.prefix.astype(np.int64), rows])


def run(
    stack: integer.Stack,
    rows: Ints,
    depth: int,
    *,
    cache: Cache | None = None,
    memory: Ints | None = None,
    tally: Tally | None = None,
) -> Ints:
    """What a stack makes of 16-bit rows (S, width), as `look_up` or `patch_rows` give: a row for each not dropped.

    16 bits where the stack has a head or nothing behind its blocks, else 8. With a `cache` the rows come after those
    it holds, and it grows: token by token gives what all at once gives. `memory` (T, K) is what cross attention reads,
    8 bits.
    """
    runner = _Runner(stack, depth, cache if cache is not None else Cache(), memory, tally)
    return runner.leave(runner.blocks(runner.enter(rows)))


def linear(layer: integer.Linear, a: Ints) -> Ints:
    """`requantise(Σ a · w + bias)`, (S, K) → (S, N), not saturated."""
    return requantise(
        _sums(layer, a) + layer.bias.astype(np.int64), layer.multiplier.astype(np.int64), layer.shift.astype(np.int64)
    )


def product(a: NDArray[np.integer[Any]], b: NDArray[np.integer[Any]], bits: int = 14) -> Ints:
    """`a @ b`, exactly, for integers whose products have `bits` bits: by floating point wide enough for all sums."""
    exact = np.float32 if a.shape[-1] << bits <= 1 << 24 else np.float64
    sums: Ints = (a.astype(exact) @ b.astype(exact)).astype(np.int64)
    return sums


def attend(
    query: Ints, keys: Ints, values: Ints, attention: integer.Attention, depth: int, first: int | None
) -> tuple[Ints, Ints]:
    """Softmax over keys, chunk by chunk of `depth` columns, and the average of values.

    Args:
        query: (heads, S, head), keys and values: (kv_heads, T, head), 8 bits.
        first: the position of the first query where attention is causal, else None.

    Returns:
        Averages (heads, S, head) of 8 bits, and the scores (heads, S, T) they come from.
    """
    heads, count, head = query.shape
    kv_heads, length, _ = keys.shape
    grouped = query.reshape(kv_heads, heads // kv_heads * count, head)
    scores = requantise(product(grouped, keys.transpose(0, 2, 1)), attention.score_multiplier, attention.score_shift)
    scores = scores.reshape(heads, count, length)
    valid = np.ones((count, length), bool)
    if first is not None:
        valid = np.arange(length) <= first + np.arange(count)[:, None]
    weights = _softmax(scores, np.broadcast_to(valid, scores.shape), depth)
    weighted = product(weights.reshape(kv_heads, -1, length), values, 15).reshape(heads * count, head)
    out = average(weighted, weights.reshape(heads * count, length).sum(1), attention.gain)
    return out.reshape(heads, count, head), scores


def _softmax(scores: Ints, valid: NDArray[np.bool_], depth: int) -> Ints:
    """`Softmax` and `settle` of `arithmetic` for all chunks at once: settled exponentials (…, T)."""
    *outer, length = scores.shape
    padding = [*[(0, 0)] * len(outer), (0, -length % depth)]
    scores = np.pad(np.clip(scores, SCORE_LOW, SCORE_HIGH), padding).reshape(*outer, -1, depth)
    valid = np.pad(valid, padding).reshape(scores.shape)
    highest = np.where(valid, scores, SCORE_LOW).max(-1)
    aligned = (highest + OCTAVE - 1) >> OCTAVE_BITS << OCTAVE_BITS
    maximum = np.maximum(np.maximum.accumulate(aligned, -1), SCORE_LOW)
    distance = maximum[..., None] - scores
    shift = np.minimum(distance >> OCTAVE_BITS, FADED)
    exponentials = np.where(valid, rounding_shift(EXPONENTIALS[distance & (OCTAVE - 1)], shift), 0)
    octaves = maximum >> OCTAVE_BITS
    settled = rounding_shift(exponentials, np.minimum(octaves[..., -1:] - octaves, FADED)[..., None])
    return settled.reshape(*outer, -1)[..., :length]


def _sums(layer: integer.Linear, a: Ints) -> Ints:
    if layer.groups is None:
        return product(a, layer.weight.T)
    sums = np.zeros((len(a), len(layer.weight)), np.int64)
    for number, start in enumerate(range(0, a.shape[1], layer.group)):
        part = slice(start, start + layer.group)
        sums += product(a[:, part], layer.weight[:, part].T) * layer.groups[:, number].astype(np.int64)
    return sums


def _through(table: NDArray[np.int8], x: Ints) -> Ints:
    values: Ints = table.astype(np.int64)[x & 255]
    return values


@dataclass(frozen=True)
class _Runner:
    stack: integer.Stack
    depth: int
    cache: Cache
    memory: Ints | None
    tally: Tally | None

    def enter(self, rows: Ints) -> Ints:
        """Positions and the norm on the way in."""
        start, rows = self.cache.rows, np.asarray(rows, np.int64)
        if self.stack.positions is not None:
            self._check(start + len(rows), len(self.stack.positions), "positions")
            rows = self._saturate("entry", rows + self.stack.positions[start : start + len(rows)], 16)
        if self.stack.entry is not None:
            rows = self._norm("entry.norm", self.stack.entry, rows, 16)
        return rows

    def blocks(self, x: Ints) -> Ints:
        """All blocks, 16 bits to 16 bits."""
        narrow = x if self.stack.convert is None else self._saturate("convert", requantise(x, *self.stack.convert), 8)
        for number, block in enumerate(self.stack.blocks):
            x, narrow = self._block(f"blocks.{number}", block, x, narrow)
        self.cache.rows += len(x)
        return x

    def leave(self, x: Ints) -> Ints:
        """The last norm or conversion, projector and head."""
        stack = self.stack
        x = x[max(0, stack.drop - (self.cache.rows - len(x))) :]
        if stack.final is not None:
            x = self._norm("final", stack.final, x, 8)
        elif stack.exit is not None:
            x = self._saturate("exit", requantise(x, *stack.exit), 8)
        for number, (layer, table) in enumerate(stack.projector):
            x = self._saturate(f"projector.{number}", linear(layer, x), 8)
            x = x if table is None else _through(table, x)
        return x if stack.head is None else self._saturate("head", linear(stack.head, x), 16)

    def _block(self, place: str, block: integer.Block, x: Ints, narrow: Ints) -> tuple[Ints, Ints]:
        """16-bit rows and, in post-norm blocks, their 8-bit twin → the same."""
        parts = [("attention", block.attention_norm, block.attention_norm_wide)]
        if block.cross is not None:
            parts.append(("cross", _given(block.cross_norm), block.cross_norm_wide))
        parts.append(("mlp", block.mlp_norm, block.mlp_norm_wide))
        for name, norm, wide in parts:
            read = narrow if block.post else self._norm(f"{place}.{name}_norm", norm, x, 8)
            x = self._mlp(f"{place}.mlp", block.mlp, read, x) if name == "mlp" else self._attention(
                f"{place}.{name}", _given(block.attention if name == "attention" else block.cross), read, x, name
            )  # fmt: skip
            if block.post:
                narrow = self._norm(f"{place}.{name}_norm", norm, x, 8)
                x = self._norm(f"{place}.{name}_norm_wide", _given(wide), x, 16)
        return x, narrow

    def _attention(self, place: str, attention: integer.Attention, read: Ints, x: Ints, kind: str) -> Ints:
        start = self.cache.rows
        query = self._heads(f"{place}.query", attention.query, attention, read, start)
        if kind == "attention" or place not in self.cache.keys:
            source = read
            if kind == "cross":
                if self.memory is None:
                    raise SettingError(f"stack {self.stack.name} has cross attention: give the memory it reads")
                source = np.asarray(self.memory, np.int64)
            new = self._heads(f"{place}.key", attention.key, attention, source, start)
            values = self._saturate(f"{place}.value", linear(attention.value, source), 8)
            keys, values = self.cache.append(place, new, _split(values, attention.kv_heads))
        else:
            keys, values = self.cache.keys[place], self.cache.values[place]
        out, scores = attend(query, keys, values, attention, self.depth, start if attention.causal else None)
        if self.tally is not None:
            self.tally.add(f"{place}.scores", scores, 16)
        return self._onto(f"{place}.output", attention.output, _joined(out), x)

    def _heads(self, place: str, layer: integer.Linear, attention: integer.Attention, read: Ints, start: int) -> Ints:
        """Query or key (heads, S, head), 8 bits, turned by their positions where there is a rotary table."""
        heads = len(layer.weight) // attention.head
        y = linear(layer, read)
        if attention.rotary is None:
            return _split(self._saturate(place, y, 8), heads)
        self._check(start + len(read), len(attention.rotary), "rotary positions")
        table = attention.rotary[start : start + len(read)].astype(np.int64)
        return rotate(_split(self._saturate(place, y, 16), heads), table, attention.rotary_shift)

    def _mlp(self, place: str, mlp: integer.Mlp, read: Ints, x: Ints) -> Ints:
        up = self._saturate(f"{place}.up", linear(mlp.up, read), 8)
        if mlp.gate is None:
            return self._onto(f"{place}.down", mlp.down, _through(mlp.table, up), x)
        gate = _through(mlp.table, self._saturate(f"{place}.gate", linear(mlp.gate, read), 8))
        both = self._saturate(f"{place}.product", requantise(up * gate, mlp.multiplier, mlp.shift), 8)
        return self._onto(f"{place}.down", mlp.down, both, x)

    def _onto(self, place: str, layer: integer.Linear, read: Ints, x: Ints) -> Ints:
        """A layer's result added to the residual stream."""
        return self._saturate(place, saturate(linear(layer, read), 24) + x, 16)

    def _norm(self, place: str, norm: integer.Norm, x: Ints, bits: int) -> Ints:
        rows = normalise(x, norm.epsilon, norm.centred)
        wide = scale_norm(rows, norm.gain.astype(np.int64), norm.offset.astype(np.int64), norm.shift, 40)
        return self._saturate(place, wide, bits)

    def _saturate(self, place: str, values: Ints, bits: int) -> Ints:
        if self.tally is not None:
            self.tally.add(place, values, bits)
        return saturate(values, bits)

    def _check(self, wanted: int, there: int, what: str) -> None:
        if wanted > there:
            raise SettingError(f"stack {self.stack.name} has {there} {what}, {wanted} are needed: quantise with more")


def _split(rows: Ints, heads: int) -> Ints:
    """(S, heads · head) → (heads, S, head)."""
    return rows.reshape(len(rows), heads, -1).transpose(1, 0, 2)


def _joined(heads: Ints) -> Ints:
    """(heads, S, head) → (S, heads · head)."""
    return np.ascontiguousarray(heads.transpose(1, 0, 2)).reshape(heads.shape[1], -1)


def _given(part: _Part | None) -> _Part:
    """A part that the block must have."""
    if part is None:
        raise SettingError("a post-norm block needs wide norms, one with cross attention a norm for it")
    return part
