"""Bursts of transfers: whole, cut where they must be, and what a DRAM makes of their order."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gossamer.dataflow.bursts import Bursts, program_bursts, row_misses, step_bursts, write_trace
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.mapping import AddressMap
from gossamer.dataflow.schedule import End, Load, Pattern, Schedule, Store, Tensor

ENGINE = IntegerEngine(
    rows=8, columns=8, depth=8, lanes=4, norm_rows=8, banks=8, bank_lines=64, bus_bytes=16, four_bit=True,
    parameters=64, groups=16, chunks=16, instructions=64, tables=4,
)  # fmt: skip


@given(
    st.integers(0, 5000), st.integers(0, 40), st.integers(0, 60), st.integers(0, 700), st.sampled_from([64, 512, 4096])
)
def test_a_load_reads_its_rows_once_and_in_order(start: int, count: int, chunks: int, pitch: int, most: int) -> None:
    step = Load(16 * start, Tensor(0, 8), count, pattern=Pattern.ROWS, chunks=chunks, row_pitch=16 * pitch)
    address, words = step_bursts(ENGINE, step, most=most)
    read = np.concatenate([at + np.arange(0, 16 * n, 16) for at, n in zip(address, words, strict=True)] or [address])
    row = np.arange(0, 16 * -(-8 * chunks // 16), 16)
    assert read.tolist() == [16 * (start + i * pitch) + at for i in range(count) for at in row.tolist()]
    assert ((words >= 1) & (words <= 256)).all()
    assert (address // most == (address + 16 * words - 1) // most).all()
    joined = address[1:] == (address + 16 * words)[:-1]  # cut within a row: only at an edge
    within = np.cumsum(words)[:-1] % max(len(row), 1) != 0
    assert (address[1:][joined & within] % most == 0).all()


def test_registers_move_and_lengthen() -> None:
    lines = Load(0, Tensor(0, 8), 2, register=1, address_step=32, count_step=3)
    address, words = step_bursts(ENGINE, lines, (0, 9))
    assert (address.tolist(), words.tolist()) == ([288], [2 + 2 * 3])
    rows = Store(0, Tensor(0, 8), 2, Pattern.ROWS, 3, row=6, block_pitch=4096, row_pitch=8, chunk_pitch=64, register=1)
    address, words = step_bursts(ENGINE, rows, (0, 1))
    # row 7 of the first block, then row 0 of the second; halves of a bus word
    assert address.tolist() == [48, 112, 176, 4096, 4160, 4224]
    assert words.tolist() == [1] * 6


def test_a_program_s_bursts_in_time(tmp_path: Path) -> None:
    steps = (Load(0, Tensor(0, 8), 600), Store(1 << 16, Tensor(64, 8), 2), End())
    bursts = program_bursts(Schedule(ENGINE, steps))
    assert len(bursts) == 3 + 1
    read = ~bursts.write
    assert bursts.address[read].tolist() == [0, 4096, 8192]
    assert bursts.words[read].tolist() == [256, 256, 88]
    assert np.diff(bursts.cycle[read]).tolist() == [256, 256]
    assert bursts.cycle[bursts.write][0] < bursts.cycle[read][1]  # side by side
    write_trace(bursts, tmp_path / "trace", ENGINE.bus_bytes)
    lines = [line.split() for line in (tmp_path / "trace").read_text().splitlines()]
    assert len(lines) == 600 + 8
    assert [kind for _, kind, _ in lines].count("WRITE") == 8
    assert [int(cycle) for _, _, cycle in lines] == sorted(int(cycle) for _, _, cycle in lines)
    reads = [int(at, 16) for at, kind, _ in lines if kind == "READ"]
    assert reads == list(range(0, 9600, 16))


def test_consecutive_bursts_stay_in_open_rows() -> None:
    count = 1 << 10
    straight = AddressMap(burst=6, column=4, bank=2)
    program = np.arange(count) << 6
    words, write = np.full(count, 4), np.zeros(count, bool)

    def bursts(mapping: AddressMap, order: np.ndarray = program) -> Bursts:
        return Bursts(mapping.apply(order), words, write, np.arange(count))

    assert row_misses(bursts(straight), straight) == count // 16  # a row is left once it is read
    scattered = bursts(straight, np.random.default_rng(0).permutation(program))
    assert row_misses(scattered, straight) > count // 2
    moved = AddressMap(burst=6, column=4, bank=2, bank_at=6, column_at=8)
    assert row_misses(bursts(moved), moved) == count // 16
    none = np.zeros(0, np.int64)
    assert row_misses(Bursts(none, none, none.astype(bool), none), straight) == 0
