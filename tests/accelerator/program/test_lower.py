"""Lowered programs on the golden machine against the stack run by whole tensors: equal, to the bit."""

import numpy as np
import pytest
from tests.accelerator.program.random_stacks import Maker, llama

from gossamer.accelerator.golden import tensors
from gossamer.accelerator.golden.machine import run
from gossamer.accelerator.integer import Stack
from gossamer.accelerator.program import OuterMemory, Program, images, lower_decode, lower_prefill
from gossamer.dataflow.engine import IntegerEngine

ENGINES = {
    "8x8x8": IntegerEngine(rows=8, columns=8, depth=8, lanes=4),
    "4x8x4": IntegerEngine(rows=4, columns=8, depth=4, lanes=2, norm_rows=2, bus_bytes=8),
    "16x8x8": IntegerEngine(rows=16, columns=8, depth=8, lanes=4, norm_rows=4, bus_bytes=32),
    "4x16x8": IntegerEngine(rows=4, columns=16, depth=8, lanes=2, norm_rows=16, bus_bytes=8),
}
WORDS = 37


def prefilled(program: Program, memory: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Output rows of a prefill of `rows`."""
    program.layout["input"].write(memory, rows)
    run(program.schedule, memory)
    return program.layout["output"].read(memory)


def decoded(program: Program, memory: np.ndarray, tokens: list[int], start: int) -> np.ndarray:
    out = []
    for position, token in enumerate(tokens, start):
        run(program.schedule, memory, [token, position])
        out.append(program.layout["output"].read(memory)[0])
    return np.stack(out)


def small_llama(seed: int, group: int = 0, head: int = 6, heads: int = 4, kv_heads: int = 2) -> Stack:
    return llama(Maker(seed, group), 20, heads, kv_heads, head, 28, WORDS)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_llama_prefill_and_decode(engine: IntegerEngine) -> None:
    stack = small_llama(1)
    tokens = list(np.random.default_rng(0).integers(0, WORDS, 22))
    held = images(stack, OuterMemory(engine), rows=13, context=24)
    prompt = lower_prefill(held, engine, 13, outputs="all")
    more = lower_prefill(held, engine, 5, start=13)
    step = lower_decode(held, engine)
    memory = step.image()
    rows = stack.table[tokens]
    expected = tensors.run(stack, rows.astype(np.int64), engine.depth)
    assert np.ptp(expected) > 1000  # the numbers say something
    np.testing.assert_array_equal(prefilled(prompt, memory, rows[:13]), expected[:13])
    np.testing.assert_array_equal(prefilled(more, memory, rows[13:18]), expected[17:18])
    np.testing.assert_array_equal(decoded(step, memory, tokens[18:], 18), expected[18:])
