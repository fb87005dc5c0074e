"""Whole tensors in golden arithmetic: the softmax chunk by chunk, decoding against prefill, cross attention."""

from dataclasses import replace

import numpy as np
import pytest
from tests.accelerator.stacks import memory_of, random_stack, rows_of

from gossamer.accelerator import integer
from gossamer.accelerator.golden import tensors
from gossamer.accelerator.golden.arithmetic import Softmax, average, requantise, settle
from gossamer.core.errors import SettingError


def attended_by_chunks(query, keys, values, attention, depth, first):
    """One head, one chunk after the other, by the definitions in `arithmetic`."""
    scores = requantise(query @ keys.T, attention.score_multiplier, attention.score_shift)
    softmax, chunks = Softmax.start(len(query)), []
    for start in range(0, len(keys), depth):
        part = scores[:, start : start + depth]
        columns = np.arange(start, start + part.shape[1])
        valid = (
            np.broadcast_to(True, part.shape) if first is None else columns <= first + np.arange(len(query))[:, None]
        )
        chunks.append(softmax.exponentials(part, valid))
    last = softmax.octaves[-1]
    weights = np.concatenate(
        [settle(chunk, octave, last) for chunk, octave in zip(chunks, softmax.octaves, strict=True)], 1
    )
    return average(weights @ values, weights.sum(1), attention.gain)


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_the_definitions_chunk_by_chunk(depth: int, causal: bool) -> None:
    random = np.random.default_rng(depth)
    query = random.integers(-128, 128, (4, 9, 6))
    keys, values = (random.integers(-128, 128, (2, 21, 6)) for _ in range(2))
    attention = replace(random_stack(1).blocks[0].attention, score_multiplier=40000, score_shift=17, gain=1)
    first = 12 if causal else None
    found, _ = tensors.attend(query, keys, values, attention, depth, first)
    for head in range(4):
        wanted = attended_by_chunks(query[head], keys[head // 2], values[head // 2], attention, depth, first)
        assert np.array_equal(found[head], wanted)
    assert len(np.unique(found)) > 40


def test_the_engines_depth_matters() -> None:
    """Scores that rise along the row are rounded against maxima that depend on the chunk."""
    random = np.random.default_rng(0)
    query, keys, values = (random.integers(-100, 100, (1, 40, 4)) for _ in range(3))
    attention = replace(random_stack(1).blocks[0].attention, score_multiplier=40000, score_shift=22)
    found = [tensors.attend(query, keys, values, attention, depth, None)[0] for depth in (2, 16)]
    assert not np.array_equal(*found)
    assert np.abs(found[0] - found[1]).max() <= 3


@pytest.mark.parametrize("kind", ["llama", "learned", "cross", "post"])
@pytest.mark.parametrize("depth", [4, 8])
def test_token_by_token_is_all_at_once(kind: str, depth: int) -> None:
    stack = random_stack(3, kind=kind, causal=True)
    rows, memory = rows_of(stack, 11), memory_of(stack)
    whole = tensors.run(stack, rows, depth, memory=memory)
    cache = tensors.Cache()
    steps = [tensors.run(stack, rows[:5], depth, cache=cache, memory=memory)]
    steps += [tensors.run(stack, rows[at : at + 1], depth, cache=cache, memory=memory) for at in range(5, 11)]
    assert np.array_equal(whole, np.concatenate(steps))
    assert cache.rows == 11
    assert len(np.unique(whole)) > 50


def test_cross_attention_reads_its_memory() -> None:
    stack = random_stack(5, kind="cross", causal=True)
    rows, memory = rows_of(stack, 4), memory_of(stack)
    assert not np.array_equal(
        tensors.run(stack, rows, 8, memory=memory), tensors.run(stack, rows, 8, memory=memory[::-1] // 2)
    )
    with pytest.raises(SettingError, match="memory"):
        tensors.run(stack, rows, 8)


def test_four_bit_groups_multiply_their_sums() -> None:
    random = np.random.default_rng(2)
    weight, a = random.integers(-8, 8, (5, 20)), random.integers(-128, 128, (3, 20))
    groups = random.integers(1, 16, (5, 3))
    layer = integer.Linear(
        weight.astype(np.int8), np.arange(5, dtype=np.int32) * 100, np.full(5, 40000, np.uint16),
        np.full(5, 20, np.uint8), groups.astype(np.uint8), 8,
    )  # fmt: skip
    spread = weight * np.repeat(groups, 8, 1)[:, :20]
    assert np.array_equal(tensors.linear(layer, a), requantise(a @ spread.T + layer.bias, 40000, 20))


@pytest.mark.parametrize("columns", [3, 1024, 1025, 5000])
def test_products_are_exact(columns: int) -> None:
    a = np.full((2, columns), -128)
    b = np.full((columns, 2), -128)
    b[0] = 127
    assert np.array_equal(tensors.product(a, b), a @ b)


def test_positions_that_are_not_there_are_refused() -> None:
    for kind, what in (("llama", "rotary positions"), ("learned", "positions")):
        stack = random_stack(1, kind=kind, causal=True)
        with pytest.raises(SettingError, match=what):
            tensors.run(stack, rows_of(stack, 33), 8)


def test_dropped_rows_are_left_out_of_the_head_only() -> None:
    stack = random_stack(4, kind="learned")
    rows = rows_of(stack, 6)
    whole = tensors.run(stack, rows, 8)
    assert np.array_equal(tensors.run(replace(stack, drop=2), rows, 8), whole[2:])
