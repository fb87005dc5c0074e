"""Lowered programs on the golden machine against the stack run by whole tensors: equal, to the bit."""

from dataclasses import replace

import numpy as np
import pytest
from tests.accelerator.program.random_stacks import Maker, bert, crossed, llama, vit

from gossamer.accelerator.golden import tensors
from gossamer.accelerator.golden.machine import Machine, run
from gossamer.accelerator.integer import Stack
from gossamer.accelerator.program import OuterMemory, Program, images, lower_decode, lower_prefill
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Gemm

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


@pytest.mark.parametrize("engine", [ENGINES["8x8x8"], ENGINES["4x8x4"], ENGINES["4x16x8"]])
def test_four_bit_weights(engine: IntegerEngine) -> None:
    stack = small_llama(2, group=16, head=8)
    tokens = list(np.random.default_rng(1).integers(0, WORDS, 11))
    held = images(stack, OuterMemory(engine), rows=7, context=16)
    prompt, step = lower_prefill(held, engine, 7), lower_decode(held, engine)
    memory, rows = step.image(), stack.table[tokens]
    expected = tensors.run(stack, rows.astype(np.int64), engine.depth)
    np.testing.assert_array_equal(prefilled(prompt, memory, rows[:7]), expected[6:7])
    np.testing.assert_array_equal(decoded(step, memory, tokens[7:], 7), expected[7:])


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_post_norm_encoder(engine: IntegerEngine) -> None:
    stack = bert(Maker(3), 20, 2, 36)
    program = lower_prefill(stack, engine, 19)
    rows = Maker(4).rows(19, 20)
    expected = tensors.run(stack, rows.astype(np.int64), engine.depth)
    assert np.ptp(expected) > 100
    np.testing.assert_array_equal(prefilled(program, program.image(), rows), expected)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_tower_writes_what_the_language_model_reads(engine: IntegerEngine) -> None:
    make = Maker(5)
    tower, language = vit(make, 24, 3, 40, 27, 10, 20), small_llama(6)
    outer = OuterMemory(engine)
    seen, spoken = images(tower, outer, rows=10), images(language, outer, rows=17, context=20)
    look = lower_prefill(seen, engine, 10, output=spoken.input.part(3, 10))
    read = lower_prefill(spoken, engine, 16)
    patches, tokens = make.patches(10, 27), np.random.default_rng(2).integers(0, WORDS, 6)
    memory = outer.image()
    text = language.table[tokens]
    spoken.input.write(memory, text[:3])
    spoken.input.write(memory, text[3:], 13)
    features = tensors.run(tower, tensors.patch_rows(tower, patches), engine.depth)
    np.testing.assert_array_equal(prefilled(look, memory, patches), features)
    run(read.schedule, memory)
    whole = np.concatenate([text[:3], features, text[3:]]).astype(np.int64)
    expected = tensors.run(language, whole, engine.depth)
    np.testing.assert_array_equal(read.layout["output"].read(memory), expected[-1:])


@pytest.mark.parametrize("engine", [ENGINES["8x8x8"], ENGINES["4x16x8"]])
def test_cross_attention(engine: IntegerEngine) -> None:
    make = Maker(7)
    encoder, decoder = bert(make, 24, 2, 32), crossed(make, 20, 2, 28, 24, WORDS)
    outer = OuterMemory(engine)
    heard = images(encoder, outer, rows=11)
    spoken = images(decoder, outer, rows=3, context=9, memory=heard.output)
    listen, begin = lower_prefill(heard, engine, 11), lower_prefill(spoken, engine, 3, outputs="all")
    step = lower_decode(spoken, engine)
    memory, rows, tokens = outer.image(), make.rows(11, 24), [4, 9, 0, 36, 5, 5, 8]
    encoded = prefilled(listen, memory, rows)
    np.testing.assert_array_equal(encoded, tensors.run(encoder, rows.astype(np.int64), engine.depth))
    cache, text = tensors.Cache(), decoder.table[tokens].astype(np.int64)
    expected = tensors.run(decoder, text, engine.depth, cache=cache, memory=encoded)
    np.testing.assert_array_equal(prefilled(begin, memory, text[:3]), expected[:3])
    np.testing.assert_array_equal(decoded(step, memory, tokens[3:], 3), expected[3:])


def test_small_memories_cut_weights_and_pages() -> None:
    """Weights that fit in no bank at once and more steps than the ring holds; booted as the engine boots."""
    engine = IntegerEngine(
        rows=4, columns=8, depth=4, lanes=2, norm_rows=4, bus_bytes=8,
        banks=8, bank_lines=64, parameters=256, groups=64, instructions=64,
    )  # fmt: skip
    stack = llama(Maker(8), 52, 4, 2, 12, 84, WORDS)
    tokens = list(np.random.default_rng(3).integers(0, WORDS, 9))
    held = images(stack, OuterMemory(engine), rows=6, context=12)
    prompt, step = lower_prefill(held, engine, 6), lower_decode(held, engine)
    assert len(step.schedule.steps) > 3 * engine.instructions
    memory, rows = step.image(), stack.table[tokens]
    expected = tensors.run(stack, rows.astype(np.int64), engine.depth)
    prompt.layout["input"].write(memory, rows[:6])
    Machine(engine, memory).boot(prompt.address, prompt.count)
    np.testing.assert_array_equal(prompt.layout["output"].read(memory), expected[5:6])
    for position, token in enumerate(tokens[6:], 6):
        Machine(engine, memory, [token, position]).boot(step.address, step.count)
        np.testing.assert_array_equal(step.layout["output"].read(memory)[0], expected[position])


def test_what_does_not_fit_names_the_engine_that_would() -> None:
    engine = IntegerEngine(rows=4, columns=8, depth=4, lanes=2, norm_rows=4, bus_bytes=8, banks=4, bank_lines=16)
    with pytest.raises(
        SettingError, match=r"find no room in the SRAM memory; an engine with bank_lines = (\d+)"
    ) as error:
        lower_prefill(small_llama(9), engine, 20)
    lines = int(str(error.value).split("bank_lines = ")[1].split()[0])
    lower_prefill(small_llama(9), engine.model_copy(update={"bank_lines": lines}), 20)
    with pytest.raises(SettingError, match="find no room"):
        lower_prefill(small_llama(9), engine.model_copy(update={"bank_lines": lines // 2}), 20)


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 80))])
def test_random_stacks_on_random_engines(seed: int) -> None:
    random = np.random.default_rng(seed)

    def pick(*values: int) -> int:
        return int(random.choice(values))

    depth = pick(4, 8)
    columns = pick(8, 16)
    engine = IntegerEngine(
        rows=pick(2, 4, 8, 16), columns=columns, depth=depth, lanes=pick(1, 2), norm_rows=pick(1, 2, 8),
        bus_bytes=depth * pick(1, 2, 4), banks=pick(4, 8), bank_lines=1024, instructions=pick(64, 1024), chunks=16,
    )  # fmt: skip
    group = depth * pick(0, 0, 1, 2)
    kv_heads = pick(1, 2, 3)
    head = depth * pick(1, 2) if group else 2 * pick(1, 3, 5, 8)
    stack = llama(
        Maker(seed, group), int(random.integers(5, 50)), kv_heads * pick(1, 2, 3), kv_heads, head,
        int(random.integers(3, 70)), int(random.integers(2, 60)),
    )  # fmt: skip
    length, first = int(random.integers(4, 30)), int(random.integers(1, 4))
    held = images(stack, OuterMemory(engine), rows=length, context=length + 2)
    assert stack.table is not None
    tokens = list(random.integers(0, len(stack.table), length + 2))
    begin = lower_prefill(held, engine, first)
    go_on = lower_prefill(held, engine, length - first, start=first, outputs="all")
    step = lower_decode(held, engine)
    memory, rows = step.image(), stack.table[tokens]
    expected = tensors.run(stack, rows.astype(np.int64), engine.depth)
    np.testing.assert_array_equal(prefilled(begin, memory, rows[:first]), expected[first - 1 : first])
    np.testing.assert_array_equal(prefilled(go_on, memory, rows[first:length]), expected[first:length])
    np.testing.assert_array_equal(decoded(step, memory, tokens[length:], length), expected[length:])


def test_bands_of_rows_where_an_mlp_does_not_fit() -> None:
    """A hidden layer far wider than the stack: its rows are treated in bands; the numbers stay."""
    engine = IntegerEngine(rows=8, columns=8, depth=8, banks=8, bank_lines=16, parameters=1024)
    stack = bert(Maker(10), 16, 2, 200)
    program = lower_prefill(stack, engine, 29)
    rows = Maker(11).rows(29, 16)
    ups = [step for step in program.schedule.steps if isinstance(step, Gemm) and step.table]
    assert {step.m for step in ups} == {8, 5}
    np.testing.assert_array_equal(
        prefilled(program, program.image(), rows), tensors.run(stack, rows.astype(np.int64), engine.depth)
    )


def test_a_stack_without_tokens_decodes_rows() -> None:
    engine = ENGINES["8x8x8"]
    stack = replace(small_llama(12), table=None)
    held = images(stack, OuterMemory(engine), context=4)
    step = lower_decode(held, engine)
    memory, rows = step.image(), Maker(13).rows(4, 20)
    expected = tensors.run(stack, rows.astype(np.int64), engine.depth)
    for position in range(4):
        step.layout["input"].write(memory, rows[position : position + 1])
        run(step.schedule, memory, [0, position])
        np.testing.assert_array_equal(step.layout["output"].read(memory)[0], expected[position])


def test_what_cannot_be_lowered_is_said() -> None:
    engine = ENGINES["8x8x8"]
    with pytest.raises(SettingError, match="language: start is"):
        lower_prefill(bert_named("language"), engine, 4, start=3)
    with pytest.raises(SettingError, match="decode needs a causal stack"):
        lower_decode(bert_named("encoder"), engine, context=4)
    with pytest.raises(SettingError, match="context is 0; decode needs at least 1"):
        lower_decode(images(small_llama(1), OuterMemory(engine)), engine)
    with pytest.raises(SettingError, match="41 positions; the model has 40"):
        lower_prefill(bert_named("encoder"), engine, 41)
    with pytest.raises(SettingError, match="65 positions; the rotary table has 64"):
        lower_decode(small_llama(1), engine, context=65)
    with pytest.raises(SettingError, match="weights of 4 bits; this engine has none"):
        lower_prefill(small_llama(2, group=16, head=8), engine.model_copy(update={"four_bit": False}), 4)
    with pytest.raises(SettingError, match=r"groups of 12; the engine takes multiples of its depth 8"):
        lower_prefill(small_llama(2, group=12, head=8), engine, 4)
    with pytest.raises(SettingError, match="groups of 8 end inside chunks of heads of 6"):
        lower_prefill(small_llama(2, group=8, head=6), engine, 4)
    with pytest.raises(SettingError, match="cross attention needs memory_rows"):
        lower_prefill(crossed(Maker(1), 20, 2, 28, 24, WORDS), engine, 4)
    with pytest.raises(SettingError, match="8 rows of 150 scores; the engine holds 16 chunks"):
        lower_prefill(bert_named("encoder", positions=200), engine.model_copy(update={"chunks": 16}), 150)


def bert_named(name: str, positions: int = 40) -> Stack:
    return replace(bert(Maker(3), 20, 2, 36), name=name, positions=Maker(4).rows(positions, 20))
