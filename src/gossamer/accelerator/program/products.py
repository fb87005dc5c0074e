"""Products with stored weights, in pieces of columns that fit; norms; rows in and out."""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, lcm
from typing import Any

from gossamer.accelerator.program.draft import Draft, View
from gossamer.accelerator.program.images import Matrix, NormEntries, entry_step
from gossamer.accelerator.program.outer import Place
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Add, Gemm, Load, Mode, Norm, Pattern, Space, Store


@dataclass(frozen=True)
class Work:
    """What all parts of one program share.

    `piece`: lines that one piece of a weight may take. `band`: rows that an MLP treats at once, whole blocks of lines;
    its weights are loaded anew for every band. `ahead`: whether there is room for keys and values of two heads.
    """

    engine: IntegerEngine
    draft: Draft
    piece: int
    band: int
    ahead: bool


def product(
    work: Work,
    a: View,
    m: int,
    matrix: Matrix,
    mode: Mode,
    out: View | None,
    unit: int = 1,
    done: Callable[[int, int, View], None] | None = None,
    **post: Any,
) -> None:
    """`out = post(a · matrix)`, a piece of columns after the other: the next piece is loaded while this one is used.

    Args:
        work: the program.
        a: 8 bits, (m, k).
        m: rows.
        matrix: the weights.
        mode: INT8, INT16, MULTIPLY or ROTARY.
        out: (m, n); none: every piece gets a place of its own and is handed to `done(first column, columns, piece)`.
        unit: pieces are multiples of so many columns.
        post: further fields of `Gemm`; `aux` has the columns of `out`, or, with `aux_period`, serves all pieces.
    """
    engine, draft = work.engine, work.draft
    bits = 16 if mode == Mode.INT16 else 8
    aux = post.pop("aux", None)
    for first, columns in _pieces(work, matrix, unit):
        if out is None:
            target = draft.tensor(f"{matrix.name} out", m, columns, bits)
        else:
            target = out.chunk(first * bits // 8 // engine.depth)
        fields = dict(post)
        if aux is not None:
            fields["aux"] = aux if post.get("aux_period") else aux.chunk(first * bits // 8 // engine.depth)
        fields |= _load_piece(work, matrix, first, columns)
        draft.emit(Gemm, a=a, out=target, m=m, n=columns, k=matrix.k, mode=mode, **fields)
        if done is not None:
            done(first, columns, target)


def _pieces(work: Work, matrix: Matrix, unit: int) -> list[tuple[int, int]]:
    """First column and number of columns of every piece. They are alike, as the load of a long one would outlast the
    product of a short one."""
    engine = work.engine
    block = engine.line_rows * (2 if matrix.four_bit else 1)
    step = lcm(block, unit)
    most = work.piece // matrix.chunks * block
    most = min(most, engine.parameters // 4)
    if matrix.four_bit:
        words = engine.line_rows // engine.columns * matrix.group_count
        aligned = engine.bus_bytes // gcd(engine.bus_bytes, words * engine.columns)
        step = lcm(step, block * aligned)
        most = min(most, engine.groups // 2 // words * block)
    most = max(most // step * step, step)
    count = -(-matrix.n // most)
    each = -(-matrix.n // (count * step)) * step
    return [(first, min(each, matrix.n - first)) for first in range(0, matrix.n, each)]


def _load_piece(work: Work, matrix: Matrix, first: int, columns: int) -> dict[str, Any]:
    """Loads of columns `first` …; the fields of `Gemm` that say where they are."""
    engine, draft = work.engine, work.draft
    block = engine.line_rows * (2 if matrix.four_bit else 1)
    blocks = -(-columns // block)
    name = f"{matrix.name}[{first}:{first + columns}]"
    w = draft.tensor(name, blocks * engine.line_rows, matrix.k)
    load(
        work, w, matrix.weight + first // block * matrix.chunks * engine.line_bytes,
        blocks * matrix.chunks * engine.line_bytes,
    )  # fmt: skip
    entries = -(-blocks * block // entry_step(engine)) * entry_step(engine)
    parameters = draft.side(f"{name} parameters", Space.PARAMETERS, entries, entry_step(engine))
    load(work, parameters, matrix.parameters + 8 * first, 8 * blocks * block)
    fields: dict[str, Any] = {"w": w, "parameters": parameters}
    if matrix.four_bit:
        per = engine.line_rows // engine.columns * matrix.group_count
        align = max(1, engine.bus_bytes // engine.columns)
        groups = draft.side(f"{name} groups", Space.GROUPS, -(-blocks * per // align) * align, align)
        load(work, groups, matrix.groups + first // block * per * engine.columns, blocks * per * engine.columns)
        fields |= {"groups": groups, "four_bit": True, "group": matrix.group}
    return fields


def load(work: Work, to: View, address: int, size: int) -> None:
    """`size` bytes, contiguous."""
    words = -(-size // work.engine.bus_bytes)
    work.draft.emit(Load, address=address, to=to, count=words, space=to.buffer.space)


def load_table(work: Work, name: str, address: int) -> View:
    """A table of 256 bytes."""
    table = work.draft.side(name, Space.TABLES, 1)
    load(work, table, address, 256)
    return table


def load_rows(work: Work, place: Place, first: int, count: int, to: View, register: int = 0) -> None:
    """Rows `first` + R[register] … of a place."""
    work.draft.emit(
        Load,
        address=place.address + first * place.pitch,
        to=to,
        count=count,
        pattern=Pattern.ROWS,
        chunks=-(-place.columns * place.bits // 8 // work.engine.depth),
        row_pitch=place.pitch,
        register=register,
        address_step=place.pitch if register else 0,
    )


def store_rows(work: Work, source: View, count: int, place: Place, row: int, columns: int, first: int = 0) -> None:
    """`count` rows to rows `row` … of a place, `columns` from column `first` on."""
    engine = work.engine
    work.draft.emit(
        Store,
        address=place.address + first * place.bits // 8,
        source=source,
        count=count,
        pattern=Pattern.ROWS,
        chunks=-(-columns * place.bits // 8 // engine.depth),
        row=row,
        block_pitch=engine.line_rows * place.pitch,
        row_pitch=place.pitch,
        chunk_pitch=engine.depth,
    )


def norm(work: Work, name: str, x: View, m: int, entries: NormEntries, wide: bool = False) -> View:
    """A norm of `m` rows, to 8 bits, or 16 (`wide`)."""
    draft, given = work.draft, entries.norm
    n = len(given.gain)
    parameters = draft.side(f"{name} parameters", Space.PARAMETERS, entries.entries, entry_step(work.engine))
    load(work, parameters, entries.parameters, 8 * entries.entries)
    out = draft.tensor(name, m, n, 16 if wide else 8)
    if not 0 <= given.epsilon < 1 << 48:
        raise SettingError(f"{name}: epsilon is {given.epsilon}; 48 bits can be encoded")
    draft.emit(
        Norm,
        a=x,
        out=out,
        m=m,
        n=n,
        parameters=parameters,
        shift=given.shift,
        epsilon=given.epsilon,
        centred=given.centred,
        wide=wide,
    )
    return out


def narrow(work: Work, name: str, x: View, m: int, n: int, scale: tuple[int, int]) -> View:
    """16 bits to 8, by multiplier and shift."""
    out = work.draft.tensor(name, m, n)
    work.draft.emit(Add, a=x, out=out, m=m, n=n, has_b=False, wide=False, multiplier=scale[0], shift=scale[1])
    return out
