"""The arithmetic below gs_gemm against the golden one: exhaustive where small, else 10^5 cases and the corners."""

from functools import cache

import numpy as np
from gemm_unit import BENCH, RTL, SOURCES

from gossamer.accelerator import rtl_tables
from gossamer.accelerator.golden import arithmetic
from gossamer.accelerator.golden.arithmetic import Ints
from gossamer.eda.design import Design
from gossamer.eda.model import Model, as_signed

CASES = 100_000


@cache
def bench() -> Model:
    return Model(Design([*SOURCES, BENCH / "arithmetic_bench.v"], "arithmetic_bench"), clock="clk_i")


def spread(random: np.random.Generator, bits: int, count: int) -> Ints:
    """Signed numbers of up to `bits` bits, of all magnitudes."""
    return random.integers(-(1 << bits - 1), 1 << bits - 1, count) >> random.integers(0, bits, count)


def requantised(x: Ints, multiplier: Ints, shift: Ints, port: str, bits: int, stages: int = 3) -> Ints:
    """What the RTL makes of it, so many cycles later."""
    late = [np.pad(column, (0, stages)) for column in (x, multiplier, shift)]
    seen = bench().run(dict(zip(("x_i", "multiplier_i", "shift_i"), late, strict=True)), [port])
    return as_signed(seen[port][stages:], bits)


def cases(bits: int) -> tuple[Ints, Ints, Ints]:
    """Random numbers of 33 bits, multipliers and shifts, then corners: the ends of the range, and of what goes out."""
    random = np.random.default_rng(0)
    x, multiplier = spread(random, 33, CASES), random.integers(0, 1 << 16, CASES)
    edge = np.array([0, 1, -1, 2, -2, (1 << 32) - 1, -(1 << 32), 1 << bits - 1, (1 << bits - 1) - 1])
    corners = np.meshgrid(edge, [0, 1, 2, (1 << 15), (1 << 16) - 1], np.arange(48), indexing="ij")
    some = (x, multiplier, random.integers(0, 48, CASES))
    x, multiplier, shift = (np.concatenate([a, b.ravel()]) for a, b in zip(some, corners, strict=True))
    return x, multiplier, shift


def test_requantisation() -> None:
    x, multiplier, shift = cases(24)
    wanted = arithmetic.saturate(arithmetic.requantise(x, multiplier, shift), 24)
    assert np.array_equal(requantised(x, multiplier, shift, "y24_o", 24), wanted)


def test_rounding_shift() -> None:
    x, multiplier, shift = cases(16)
    wanted = arithmetic.saturate(arithmetic.rounding_shift(x, shift), 16)
    assert np.array_equal(requantised(x, multiplier, shift, "y16_o", 16, stages=2), wanted)


def test_requantisation_of_all_small_numbers() -> None:
    grid = np.meshgrid(np.arange(-128, 128), [0, 1, 2, 3, 5, 6, 255, 1 << 15, 65535], np.arange(26), indexing="ij")
    x, multiplier, shift = (axis.ravel() for axis in grid)
    wanted = arithmetic.saturate(arithmetic.requantise(x, multiplier, shift), 4)
    assert np.array_equal(requantised(x, multiplier, shift, "y4_o", 4), wanted)


def test_reciprocals() -> None:
    random = np.random.default_rng(1)
    powers = 1 << np.arange(31)
    some = random.integers(0, 1 << 31, CASES) >> random.integers(0, 31, CASES)
    totals = np.concatenate([np.arange(1000), powers, powers - 1, [(1 << 31) - 1], some])
    period = 19
    start = np.zeros(period * len(totals), int)
    start[::period] = 1
    seen = bench().run({"divide_i": start, "total_i": np.repeat(totals, period)}, ["inverse_o", "place_o"])
    inverse, place = arithmetic.reciprocal(totals)
    assert np.array_equal(seen["inverse_o"][period - 1 :: period], inverse)
    assert np.array_equal(seen["place_o"][period - 1 :: period], place)


def test_the_table_of_exponentials() -> None:
    seen = bench().run({"index_i": np.arange(64)}, ["exponential_o"])["exponential_o"]
    assert np.array_equal(seen, arithmetic.EXPONENTIALS)
    assert (RTL / "gs_exponential.v").read_text(encoding="utf-8") == rtl_tables.exponential()


def test_rotations() -> None:
    random = np.random.default_rng(2)
    for shift in (0, 1, 6, 7, 8, 15):
        chunks = CASES // 4 // 6
        pairs = spread(random, 18, 8 * chunks).reshape(chunks, 8)
        turns = random.integers(-128, 128, (chunks, 8))
        sums = np.pad(pairs.reshape(-1, 2).astype("<i4"), ((0, 20), (0, 0))).view("<u8")[:, 0]
        load = np.zeros(len(sums), int)
        load[4 : 4 + 4 * chunks : 4] = 1
        aux = np.pad(np.repeat(turns.astype(np.int8).view("<u8")[:, 0], 4), (4, 16))
        bench().set("shift_i", shift)
        seen = bench().run({"sums_i": sums, "load_i": load, "turns_i": aux}, ["chunk_o"])["chunk_o"]
        found = seen[14 : 14 + 4 * chunks : 4, None].view(np.int8)
        assert np.array_equal(found, arithmetic.rotate(arithmetic.saturate(pairs, 16), turns, shift)), shift


def test_exponentials_of_all_distances() -> None:
    """Rows of one chunk: a maximum in one column, the others at every distance below it; then a running maximum."""
    random = np.random.default_rng(3)
    scores = np.concatenate([spread(random, 17, 4000), np.arange(-1000, 1000), 32767 - np.arange(2000)]).reshape(-1, 8)
    valid = random.integers(0, 10, len(scores))  # so many columns
    softmax = arithmetic.Softmax.start(1)
    wanted = [
        softmax.exponentials(row[None], np.arange(8) < count)[0] for row, count in zip(scores, valid, strict=True)
    ]
    rows = 4 * len(scores)
    columns = {
        "sums_i": (0, scores.reshape(-1, 2).astype("<i4").view("<u8")[:, 0]),
        "open_i": (5, (valid[:, None] - np.arange(0, 8, 2)).ravel()),
        "first_i": (7, np.tile([1, 0, 0, 0], len(scores))),
        "last_i": (8, np.tile([0, 0, 0, 1], len(scores))),
        "start_i": (8, np.eye(1, rows, 3, dtype=int)[0]),
    }
    late = {name: np.pad(column, (at, 30 - at)) for name, (at, column) in columns.items()}
    for name, value in (("score_i", 1), ("multiplier_i", 1), ("shift_i", 0)):
        bench().set(name, value)
    seen = bench().run(late, ["chunk_o", "octave_o"])
    bench().set("score_i", 0)
    at = 4 + 11 + 3  # DEPTH / LANES + 11 after each window, and the next cycle
    found = seen["chunk_o"][at + 1 : at + 1 + rows : 4, None].view(np.uint8)
    assert np.array_equal(found, wanted)
    assert as_signed(seen["octave_o"], 10)[-1] == softmax.maximum[0] >> 6
