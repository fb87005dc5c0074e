"""The outer memory's side of a program: every burst that its loads and stores ask for, and what a DRAM makes of them.

Bursts are those of `rtl/gs_bursts.v` and `rtl/gs_store.v`, in the order of each unit: the requests on the AXI4 port.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gossamer.core.files import write_text
from gossamer.dataflow.cycles.program import timeline
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.mapping import AddressMap
from gossamer.dataflow.schedule import Load, Pattern, Schedule, Space, Store

MOST_WORDS = 256
"""Of an AXI4 burst."""


@dataclass(frozen=True, eq=False)
class Bursts:
    """Requests to the outer memory, each array (n,): byte address as the memory sees it, bus words, whether it is a
    write, and the cycle from which it can be under way."""

    address: NDArray[np.int64]
    words: NDArray[np.int64]
    write: NDArray[np.bool_]
    cycle: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.address)


def step_bursts(
    engine: IntegerEngine, step: Load | Store, registers: Sequence[int] = (), most: int = 4096
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Byte addresses and bus words of a transfer's bursts, in order.

    Args:
        engine: its shape.
        step: the transfer.
        registers: R[0], R[1], …; missing ones are 0.
        most: bytes that a burst does not pass, a power of two up to 4096; nor does it pass 256 words.
    """
    given = registers[step.register] if step.register < len(registers) else 0
    block, bus = min(most, MOST_WORDS * engine.bus_bytes), engine.bus_bytes
    if isinstance(step, Load):
        address = step.address + given * step.address_step
        if step.pattern is Pattern.LINES or step.space is not Space.SRAM:
            return _cut(np.array([address]), step.words(engine.line_rows, given), bus, block)
        starts = address + np.arange(step.rows(given)) * step.row_pitch
        return _cut(starts, -(-step.chunks * engine.depth // bus), bus, block)
    if step.pattern is Pattern.LINES:
        return _cut(np.array([step.address]), step.count * engine.line_bytes // bus, bus, block)
    row = step.row + given + np.arange(step.count)
    starts = step.address + row // engine.line_rows * step.block_pitch + row % engine.line_rows * step.row_pitch
    chunks = (starts[:, None] + np.arange(step.chunks) * step.chunk_pitch).ravel()
    return chunks & -bus, np.ones(len(chunks), np.int64)


def program_bursts(schedule: Schedule, registers: Sequence[int] = (), mapping: AddressMap | None = None) -> Bursts:
    """The bursts of a program's transfers, as they can be under way when the bus never stalls: a burst begins when the
    words before it in its transfer have had a cycle each. The fetch of the first instructions is not among them.

    `registers` are R[1], R[2], …
    """
    mapping = mapping or AddressMap()
    values = (0, *registers)
    parts = []
    for span in timeline(schedule, registers):
        if isinstance(span.step, Load | Store):
            address, words = step_bursts(schedule.engine, span.step, values, 1 << mapping.burst)
            cycle = span.start + words.cumsum() - words
            parts.append((address, words, np.full(len(words), isinstance(span.step, Store)), cycle))
    if not parts:
        none = np.zeros(0, np.int64)
        return Bursts(none, none, none.astype(bool), none)
    address, words, write, cycle = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = cycle.argsort(kind="stable")
    return Bursts(mapping.apply(address[order]), words[order], write[order], cycle[order])


def row_misses(bursts: Bursts, mapping: AddressMap) -> int:
    """Bursts that find another row than their own open in their bank, or none, where rows are left open: each costs a
    DRAM an activation. `mapping`, by which they were mapped, says what a bank is."""
    bank, row = mapping.bank_of(bursts.address), mapping.row_of(bursts.address)
    order = bank.argsort(kind="stable")
    bank, row = bank[order], row[order]
    return len(bank) and 1 + int(((bank[1:] != bank[:-1]) | (row[1:] != row[:-1])).sum())


def write_trace(bursts: Bursts, path: Path, bus_bytes: int) -> None:
    """Writes the bursts word by word as DRAMsim3 reads them: `address READ|WRITE cycle` a line, a word a cycle."""
    index = np.repeat(np.arange(len(bursts)), bursts.words)
    word = np.arange(len(index)) - np.repeat(bursts.words.cumsum() - bursts.words, bursts.words)
    address, cycle = bursts.address[index] + word * bus_bytes, bursts.cycle[index] + word
    order = cycle.argsort(kind="stable")
    kinds = np.where(bursts.write[index], "WRITE", "READ")
    lines = zip(address[order].tolist(), kinds[order].tolist(), cycle[order].tolist(), strict=True)
    write_text(path, "".join(f"0x{at:X} {kind} {when}\n" for at, kind, when in lines))


def _cut(starts: NDArray[np.int64], words: int, bus: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `words` bus words from each of `starts`, cut at multiples of `block` bytes."""
    starts = starts[:0] if words == 0 else starts
    ends = starts + words * bus
    count = (ends - 1) // block - starts // block + 1
    row = np.repeat(np.arange(len(starts)), count)
    piece = np.arange(len(row)) - np.repeat(count.cumsum() - count, count)
    edge = (starts[row] // block + piece) * block
    begin = np.maximum(edge, starts[row])
    return begin, (np.minimum(edge + block, ends[row]) - begin) // bus
