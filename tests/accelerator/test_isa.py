"""Instructions: every step comes back from its 16 words, and what does not fit is refused by name."""

import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.accelerator.isa import LAYOUT, OPCODES, WORDS, Field, assemble, decode, encode, verilog_header
from gossamer.core.errors import SettingError
from gossamer.dataflow.schedule import Add, End, Gemm, Load, Mode, Norm, Pattern, Space, Step, Tensor

ENUMS: dict[str, Any] = {"mode": Mode, "pattern": Pattern, "space": Space}


def numbers(field: Field | None) -> st.SearchStrategy[int]:
    """All values of a field's bits, the extremes often."""
    if field is None:
        return st.just(0)
    low = -(1 << field.width - 1) if field.signed else 0
    high = (1 << field.width - field.signed) - 1
    return st.one_of(st.integers(low, high), st.sampled_from([low, high]))


def steps(kind: type[Step]) -> st.SearchStrategy[Step]:
    """Steps of a kind with any value in every field."""
    layout = LAYOUT[kind]
    values: dict[str, st.SearchStrategy[Any]] = {}
    for field in fields(kind):
        name = field.name
        if f"{name}_line" in layout:
            parts = [numbers(layout.get(f"{name}_{part}")) for part in ("line", "pitch", "row")]
            values[name] = st.builds(Tensor, *parts)
        elif name in ENUMS:
            values[name] = st.sampled_from(ENUMS[name])
        elif name == "epsilon":
            values[name] = st.integers(0, (1 << 48) - 1)
        elif layout[name].width == 1:
            values[name] = st.booleans()
        else:
            values[name] = numbers(layout[name])
    return st.builds(kind, **values)


@given(st.one_of([steps(kind) for kind in OPCODES]))
def test_every_step_comes_back(step: Step) -> None:
    words = encode(step)
    assert words.dtype == np.dtype("<u4")
    assert words.shape == (WORDS,)
    assert decode(words) == step


@given(st.lists(st.one_of([steps(kind) for kind in OPCODES]), max_size=5))
def test_a_program_is_its_instructions_in_order(program: list[Step]) -> None:
    words = np.frombuffer(assemble(program), "<u4").reshape(-1, WORDS)
    assert [decode(each) for each in words] == program


def test_no_two_fields_share_a_bit_and_none_crosses_a_word() -> None:
    for kind, layout in LAYOUT.items():
        used = set(range(8))
        for name, field in layout.items():
            bits = set(range(field.low, field.low + field.width))
            assert not used & bits, (kind, name)
            assert field.low // 32 == (field.low + field.width - 1) // 32 < WORDS, (kind, name)
            used |= bits


@pytest.mark.parametrize(
    ("step", "field"),
    [
        (Norm(Tensor(1 << 24, 1), Tensor(0, 1), 1, 1, 0, 0), "a_line"),
        (Norm(Tensor(0, 1), Tensor(0, 1), 1, 1, 0, 0, epsilon=1 << 48), "epsilon_high"),
        (Add(Tensor(0, 1), Tensor(0, 1), 1 << 16, 1), "m"),
        (replace(Gemm(Tensor(0, 1), Tensor(0, 1), Tensor(0, 1), 1, 1, 1, Mode.INT8), limit=-(1 << 31) - 1), "limit"),
        (Load(-1, Tensor(0, 0), 1), "address"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(step: Step, field: str) -> None:
    with pytest.raises(SettingError, match=rf"{type(step).__name__}: {field} is -?\d+"):
        encode(step)


def test_an_unknown_opcode_is_refused() -> None:
    words = encode(End()).copy()
    words[0] = 0x7F
    with pytest.raises(SettingError, match="opcode 127"):
        decode(words)


def test_the_verilog_header_says_the_same() -> None:
    text = verilog_header()
    for kind, layout in LAYOUT.items():
        for name, field in layout.items():
            prefix = f"{kind.__name__}_{name}".upper()
            assert re.search(rf"\b{prefix}_LO = {field.low};.*\b{prefix}_W = {field.width};", text)
    for kind, code in OPCODES.items():
        assert f"OP_{kind.__name__.upper()} = 8'd{code};" in text
