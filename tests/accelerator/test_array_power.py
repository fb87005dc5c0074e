"""The power of a cell: what it is given is what it multiplies, and real operands take less than random ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gossamer.accelerator.power import _port, cell_power, random_operands, real_operands
from gossamer.dataflow.engine import IntegerEngine
from gossamer.eda import tools

LIBERTY = Path(__file__).parents[1] / "eda" / "rtl" / "tiny.lib"
ENGINE = IntegerEngine(rows=4, columns=4, depth=4, lanes=1, norm_rows=2, bus_bytes=4, four_bit=False)


@pytest.mark.parametrize(("depth", "width"), [(4, 8), (8, 8), (4, 9), (8, 9), (16, 9)])
def test_operands_lie_side_by_side(depth: int, width: int) -> None:
    operands = np.random.default_rng(depth).integers(-128, 128, (20, depth)).astype(np.int8)
    port = _port(operands, width)
    words = port[:, None] if port.ndim == 1 else port
    for row, values in zip(words.tolist(), operands.tolist(), strict=True):
        size = 64 if port.ndim == 1 else 32
        whole = sum(word << size * index for index, word in enumerate(row))
        found = [whole >> width * index & (1 << width) - 1 for index in range(depth)]
        assert [each - (1 << width) * (each >> width - 1) for each in found] == values


@pytest.mark.slow
@pytest.mark.skipif(not tools.available("yosys") or not tools.available("verilator"), reason="a tool is missing")
def test_real_operands_take_less_than_random_ones_and_more_than_none() -> None:
    real, chance = real_operands(ENGINE.depth), random_operands(ENGINE.depth)
    assert real.left.shape == real.right.shape == chance.left.shape
    still = replace(chance, left=np.zeros_like(chance.left), right=np.zeros_like(chance.right))
    none, some, most = (cell_power(ENGINE, LIBERTY, each, 1e8) for each in (still, real, chance))
    assert none.switching_w < some.switching_w < most.switching_w
    assert none.clock_w == some.clock_w == most.clock_w
