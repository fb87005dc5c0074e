"""A stack's numbers as they lie in the outer memory: weights as line images, parameters, groups, tables, caches."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.accelerator.integer import Attention, Linear, Mlp, Norm, Stack
from gossamer.accelerator.program.outer import OuterMemory, Place
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine


@dataclass(frozen=True)
class Matrix:
    """A `Linear` in the outer memory: (n, k), line image of `chunks` lines to a block, entries, group words."""

    name: str
    n: int
    k: int
    chunks: int
    weight: int
    parameters: int
    four_bit: bool = False
    group: int = 0
    """Chunks of a group."""
    groups: int = 0
    """Address of the group multipliers."""
    group_count: int = 0
    """Groups of a column."""


@dataclass(frozen=True)
class NormEntries:
    """A norm's entries in the outer memory; `entries` is their number, padded to whole bus words and lanes."""

    norm: Norm
    parameters: int
    entries: int


@dataclass(frozen=True)
class Cache:
    """Keys and values of one block: a line image for each key head; rows of all value heads.

    `keys` is empty where keys need not outlive the block. `head`: bytes of a value head, whole bus words.
    """

    rows: int
    keys: tuple[int, ...]
    values: int
    head: int


@dataclass(frozen=True)
class AttentionImages:
    """`head` is padded to whole chunks."""

    attention: Attention
    head: int
    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    rotary: Place | None
    cache: Cache


@dataclass(frozen=True)
class MlpImages:
    mlp: Mlp
    up: Matrix
    down: Matrix
    gate: Matrix | None
    table: int


@dataclass(frozen=True)
class BlockImages:
    post: bool
    attention_norm: NormEntries
    attention: AttentionImages
    mlp_norm: NormEntries
    mlp: MlpImages
    cross_norm: NormEntries | None
    cross: AttentionImages | None
    attention_norm_wide: NormEntries | None
    mlp_norm_wide: NormEntries | None
    cross_norm_wide: NormEntries | None


@dataclass(frozen=True)
class StackImages:
    """A stack in an outer memory, ready to be lowered as often as wanted; programs of one `StackImages` share caches.

    `input`: rows that prefill reads (16 bits of the residual stream; 8-bit patches where the stack has `patch`).
    `output`: rows that programs write. `memory`: what cross attention reads, the other stack's output.
    """

    stack: Stack
    outer: OuterMemory
    context: int
    blocks: tuple[BlockImages, ...]
    input: Place
    output: Place
    memory: Place | None
    table: Place | None
    patch: Matrix | None
    prefix: Place | None
    positions: Place | None
    entry: NormEntries | None
    final: NormEntries | None
    projector: tuple[tuple[Matrix, int | None], ...]
    head: Matrix | None

    @property
    def causal(self) -> bool:
        """Whether rows see only earlier rows, so that keys and values are kept for later ones."""
        return any(block.attention.attention.causal for block in self.blocks)


def images(
    stack: Stack,
    outer: OuterMemory,
    rows: int = 1,
    context: int = 0,
    memory: Place | None = None,
    memory_rows: int = 0,
) -> StackImages:
    """Places a stack's numbers.

    Args:
        stack: the model.
        outer: the memory, which other stacks may share.
        rows: most rows of a prefill (without prefix rows).
        context: positions that caches hold, of a causal stack.
        memory: 8-bit rows that cross attention reads: another stack's `output`; else `memory_rows` are set aside.
        memory_rows: rows of it.

    Raises:
        SettingError: 4-bit weights on an engine without them, groups that are no whole chunks, sums that may overflow.
    """
    place = _Placer(stack, outer)
    prefix = 0 if stack.prefix is None else len(stack.prefix)
    causal = any(block.attention.causal for block in stack.blocks)
    if stack.positions is not None and max(rows + prefix, context) > len(stack.positions):
        raise SettingError(
            f"{stack.name}: {max(rows + prefix, context)} positions; the model has {len(stack.positions)}"
        )
    crossed = [block.cross for block in stack.blocks if block.cross is not None]
    if crossed and memory is None:
        if not memory_rows:
            raise SettingError(f"{stack.name}: cross attention needs memory_rows, the rows of the other stack")
        memory = outer.rows(memory_rows, crossed[0].key.weight.shape[1], 8)
    held = max(context, rows + prefix)
    shared = None
    blocks = []
    for i, block in enumerate(stack.blocks):
        at = f"{stack.name}.{i}"
        attention = place.attention(f"{at}.attention", block.attention, held, causal, shared)
        shared = None if causal else attention.cache
        cross = block.cross and memory and place.attention(f"{at}.cross", block.cross, memory.rows, True, None)
        blocks.append(
            BlockImages(
                block.post,
                place.norm(block.attention_norm),
                attention,
                place.norm(block.mlp_norm),
                place.mlp(f"{at}.mlp", block.mlp),
                place.norm_or_none(block.cross_norm),
                cross or None,
                place.norm_or_none(block.attention_norm_wide),
                place.norm_or_none(block.mlp_norm_wide),
                place.norm_or_none(block.cross_norm_wide),
            )
        )
    last = stack.head or (stack.projector[-1][0] if stack.projector else None)
    narrow = stack.head is None and (last is not None or stack.final is not None or stack.exit is not None)
    patch = None if stack.patch is None else place.matrix(f"{stack.name}.patch", stack.patch)
    return StackImages(
        stack=stack,
        outer=outer,
        context=context,
        blocks=tuple(blocks),
        input=outer.rows(rows, stack.width, 16) if patch is None else outer.rows(rows, patch.k, 8),
        output=outer.rows(rows + prefix, stack.width if last is None else len(last.weight), 8 if narrow else 16),
        memory=memory,
        table=place.wide(stack.table),
        patch=patch,
        prefix=place.wide(stack.prefix),
        positions=place.wide(stack.positions),
        entry=place.norm_or_none(stack.entry),
        final=place.norm_or_none(stack.final),
        projector=tuple(
            (place.matrix(f"{stack.name}.projector.{i}", layer), None if table is None else outer.put(table))
            for i, (layer, table) in enumerate(stack.projector)
        ),
        head=None if stack.head is None else place.matrix(f"{stack.name}.head", stack.head),
    )


class _Placer:
    def __init__(self, stack: Stack, outer: OuterMemory) -> None:
        self.stack, self.outer, self.engine = stack, outer, outer.engine

    def matrix(self, name: str, linear: Linear) -> Matrix:
        engine, (n, k) = self.engine, linear.weight.shape
        _check_sums(name, linear, engine)
        parameters = np.zeros((_up(n, _tile_block(engine, linear.groups is not None)), 8), np.uint8)
        parameters[:n, :4] = _bytes(linear.bias, "<i4")
        parameters[:n, 4:6] = _bytes(linear.multiplier, "<u2")
        parameters[:n, 6] = linear.shift
        chunks = -(-k // engine.depth)
        address = self.outer.put(parameters)
        if linear.groups is None:
            return Matrix(name, n, k, chunks, self.outer.put(weight_image(linear.weight, engine)), address)
        if not engine.four_bit:
            raise SettingError(
                f"{name}: weights of 4 bits; this engine has none: set four_bit to true, or quantise to 8 bits"
            )
        if linear.group % engine.depth or not 0 < linear.group // engine.depth < 256:
            nearest = min(max(round(linear.group / engine.depth), 1), 255) * engine.depth
            raise SettingError(
                f"{name}: groups of {linear.group}; the engine takes multiples of its depth {engine.depth}, "
                f"{nearest} for instance"
            )
        group = linear.group // engine.depth
        return Matrix(
            name,
            n,
            k,
            chunks,
            self.outer.put(weight_image(pack_halves(linear.weight, engine), engine)),
            address,
            True,
            group,
            self.outer.put(group_words(linear.groups, engine)),
            -(-chunks // group),
        )

    def norm(self, norm: Norm) -> NormEntries:
        count = _up(len(norm.gain), entry_step(self.engine))
        entries = np.zeros((count, 8), np.uint8)
        entries[: len(norm.gain), :4] = _bytes(norm.offset, "<i4")
        entries[: len(norm.gain), 4:6] = _bytes(norm.gain, "<i2")
        return NormEntries(norm, self.outer.put(entries), count)

    def norm_or_none(self, norm: Norm | None) -> NormEntries | None:
        return None if norm is None else self.norm(norm)

    def wide(self, values: NDArray[np.int16] | None) -> Place | None:
        return None if values is None else self.outer.rows(len(values), values.shape[1], 16, values)

    def attention(self, name: str, given: Attention, rows: int, keep: bool, shared: Cache | None) -> AttentionImages:
        engine = self.engine
        head = _up(given.head, engine.depth)
        rotary = None
        if given.rotary is not None:
            if rows > len(given.rotary) and keep:
                raise SettingError(f"{name}: {rows} positions; the rotary table has {len(given.rotary)}")
            rotary = self.outer.rows(len(given.rotary), given.head, 8, given.rotary)
        return AttentionImages(
            given,
            head,
            self.matrix(f"{name}.query", pad_outputs(given.query, given.heads, head)),
            self.matrix(f"{name}.key", pad_outputs(given.key, given.kv_heads, head)),
            self.matrix(f"{name}.value", pad_outputs(given.value, given.kv_heads, head)),
            self.matrix(f"{name}.output", pad_inputs(given.output, given.heads, head, engine.depth)),
            rotary,
            shared or self._cache(given.kv_heads, head, rows, keep),
        )

    def _cache(self, heads: int, head: int, rows: int, keep: bool) -> Cache:
        engine = self.engine
        wide = _up(head, engine.bus_bytes)
        size = _up(rows, engine.line_rows) * head
        keys = tuple(self.outer.reserve(size) for _ in range(heads)) if keep else ()
        return Cache(rows, keys, self.outer.reserve(rows * heads * wide), wide)

    def mlp(self, name: str, mlp: Mlp) -> MlpImages:
        gate = None if mlp.gate is None else self.matrix(f"{name}.gate", mlp.gate)
        up, down = self.matrix(f"{name}.up", mlp.up), self.matrix(f"{name}.down", mlp.down)
        return MlpImages(mlp, up, down, gate, self.outer.put(mlp.table))


def weight_image(weight: NDArray[np.generic], engine: IntegerEngine) -> NDArray[np.uint8]:
    """(N, K) bytes → (blocks, chunks, line_rows, depth): whole lines, zero where there is no weight."""
    n, k = weight.shape
    padded = np.zeros((_up(n, engine.line_rows), _up(k, engine.depth)), np.uint8)
    padded[:n, :k] = weight.view(np.uint8)
    blocks = padded.reshape(-1, engine.line_rows, padded.shape[1] // engine.depth, engine.depth)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3))


def pack_halves(weight: NDArray[np.int8], engine: IntegerEngine) -> NDArray[np.uint8]:
    """4-bit (N, K) → bytes (half as many rows, K): low half column c, high half column `columns` + c of a tile."""
    n, k = weight.shape
    padded = np.zeros((_up(n, 2 * engine.columns), k), np.uint8)
    padded[:n] = weight.view(np.uint8) & 15
    tiles = padded.reshape(-1, 2, engine.columns, k)
    return _halves(tiles[:, 0], tiles[:, 1]).reshape(-1, k)


def group_words(groups: NDArray[np.uint8], engine: IntegerEngine) -> NDArray[np.uint8]:
    """(N, G) multipliers → (tiles, G, columns): a word for each group of each tile."""
    n, count = groups.shape
    padded = np.zeros((_up(n, 2 * engine.columns), count), np.uint8)
    padded[:n] = groups
    tiles = padded.reshape(-1, 2, engine.columns, count).transpose(1, 0, 3, 2)
    return np.ascontiguousarray(_halves(tiles[0], tiles[1]))


def _halves(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.bitwise_or(low, np.left_shift(high, 4), dtype=np.uint8)


def pad_outputs(linear: Linear, heads: int, head: int) -> Linear:
    """Every head's rows padded with zero rows to `head`."""

    def padded(values: NDArray[Any]) -> NDArray[Any]:
        parts = values.reshape(heads, -1, *values.shape[1:])
        out = np.zeros((heads, head, *values.shape[1:]), values.dtype)
        out[:, : parts.shape[1]] = parts
        return out.reshape(-1, *values.shape[1:])

    groups = None if linear.groups is None else padded(linear.groups)
    return replace(
        linear,
        weight=padded(linear.weight),
        bias=padded(linear.bias),
        multiplier=padded(linear.multiplier),
        shift=padded(linear.shift),
        groups=groups,
    )


def pad_inputs(linear: Linear, heads: int, head: int, depth: int) -> Linear:
    """Every head's columns padded with zero columns to `head`, a multiple of `depth`.

    Raises:
        SettingError: a 4-bit group that ends inside a padded chunk.
    """
    n, k = linear.weight.shape
    if k == heads * head:
        return linear
    weight = np.zeros((n, heads, head), np.int8)
    weight[:, :, : k // heads] = linear.weight.reshape(n, heads, -1)
    if linear.groups is None:
        return replace(linear, weight=weight.reshape(n, -1))
    column = np.full((heads, head), -1)
    column[:, : k // heads] = np.arange(k).reshape(heads, -1)
    owner = np.where(column < 0, -1, column // linear.group).reshape(-1, depth)
    first = owner.max(axis=1)
    if not ((owner == first[:, None]) | (owner < 0)).all():
        raise SettingError(
            f"groups of {linear.group} end inside chunks of heads of {k // heads}; pad heads or take 8 bits"
        )
    return replace(linear, weight=weight.reshape(n, -1), groups=linear.groups[:, first], group=depth)


def entry_step(engine: IntegerEngine) -> int:
    """First entries in the parameter memory are multiples of this: lanes and whole bus words."""
    return max(engine.lanes, engine.bus_bytes // 8, 1)


def _tile_block(engine: IntegerEngine, four_bit: bool) -> int:
    """Output columns of one block of lines."""
    return engine.line_rows * (2 if four_bit else 1)


def _check_sums(name: str, linear: Linear, engine: IntegerEngine) -> None:
    """32-bit sums cannot wrap whatever the 8-bit operand."""
    weight = np.abs(linear.weight.astype(np.int16))
    if linear.groups is not None:
        weight = weight * np.repeat(linear.groups.astype(np.int16), linear.group, axis=1)[:, : weight.shape[1]]
    most = weight.cumsum(axis=1, dtype=np.int64).max(axis=0) * 128
    if most[-1] >= 1 << 31:
        raise SettingError(
            f"{name}: sums can reach {most[-1]}; 32 bits hold less than {1 << 31}, those of {(most < 1 << 31).sum()} "
            f"of its {len(most)} columns: split it in parts whose results are added"
        )


def _up(x: int, step: int) -> int:
    return -(-x // step) * step


def _bytes(values: NDArray[np.generic], kind: str) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values.astype(kind)).view(np.uint8).reshape(len(values), -1)
