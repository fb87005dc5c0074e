"""The instruction set: a step as 16 words of 32 bits, and the Verilog names of the same fields.

`LAYOUT` is the one place that says where a field lies. `encode` writes by it, `decode` reads by it, `verilog_header`
makes the localparams by which the sequencer picks fields apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gossamer.core.errors import SettingError
from gossamer.dataflow.schedule import Add, End, Fence, Gemm, Load, Mode, Norm, Pattern, Space, Step, Store, Tensor

WORDS = 16
"""32-bit words of an instruction, little endian."""
BYTES = 4 * WORDS


@dataclass(frozen=True)
class Field:
    """Bits `low` … `low + width − 1` of the instruction, unsigned unless `signed`."""

    low: int
    width: int
    signed: bool = False


def _packed(*rows: tuple[str, int] | tuple[str, int, bool]) -> dict[str, Field]:
    """Fields one after the other, none across a 32-bit word, after the opcode's 8 bits."""
    placed, at = {}, 8
    for name, width, *signed in rows:
        if at // 32 != (at + width - 1) // 32:
            at = (at // 32 + 1) * 32
        placed[name] = Field(at, width, bool(signed and signed[0]))
        at += width
    if at > 32 * WORDS:
        raise AssertionError(f"{at} bits do not fit an instruction")
    return placed


def _tensor(name: str) -> tuple[tuple[str, int], ...]:
    return ((f"{name}_row", 8), (f"{name}_line", 24), (f"{name}_pitch", 16))


OPCODES: dict[type[Step], int] = {End: 0, Load: 1, Store: 2, Gemm: 3, Norm: 4, Add: 5, Fence: 6}
LAYOUT: dict[type[Step], dict[str, Field]] = {
    End: {},
    Fence: _packed(("load", 1), ("store", 1), ("compute", 1)),
    Load: _packed(
        ("space", 3), ("pattern", 2), ("register", 3), ("add_count", 1), ("address", 32), ("to_line", 24),
        ("to_row", 8), ("to_pitch", 16), ("chunks", 16), ("count", 32), ("row_pitch", 32),
        ("address_step", 32), ("count_step", 32),
    ),
    Store: _packed(
        ("pattern", 2), ("register", 3), ("address", 32), ("source_line", 24), ("source_row", 8), ("source_pitch", 16),
        ("chunks", 16), ("count", 32), ("row", 32), ("block_pitch", 32), ("row_pitch", 32), ("chunk_pitch", 32),
    ),
    Gemm: _packed(
        ("mode", 3), ("table", 5), ("register", 3), ("add_n", 1), ("add_k", 1), ("add_limit", 1), ("causal", 1),
        ("four_bit", 1), ("a_line", 24), ("a_row", 8), ("w_line", 24), ("w_row", 8), ("out_line", 24), ("out_row", 8),
        ("aux_line", 24), ("aux_row", 8), ("a_pitch", 16), ("w_pitch", 16), ("out_pitch", 16), ("aux_pitch", 16),
        ("m", 16), ("aux_period", 16), ("n", 24), ("shift", 8), ("k", 24), ("group", 8), ("parameters", 24),
        ("multiplier", 16), ("groups", 16), ("limit", 32, True),
    ),
    Norm: _packed(
        ("centred", 1), ("wide", 1), ("shift", 8), ("a_line", 24), ("a_row", 8), ("out_line", 24), ("out_row", 8),
        ("a_pitch", 16), ("out_pitch", 16), ("m", 16), ("n", 16), ("parameters", 24), ("epsilon_low", 32),
        ("epsilon_high", 16),
    ),
    Add: _packed(
        ("has_b", 1), ("wide", 1), ("shift", 8), ("a_line", 24), ("a_row", 8), ("b_line", 24), ("b_row", 8),
        ("out_line", 24), ("out_row", 8), ("a_pitch", 16), ("b_pitch", 16), ("out_pitch", 16), ("multiplier", 16),
        ("m", 16), ("n", 16),
    ),
}  # fmt: skip
"""Step → field → place. A tensor is three fields, `epsilon` two."""


def encode(step: Step) -> np.ndarray:
    """A step as `WORDS` uint32.

    Raises:
        SettingError: a field that does not fit its bits; the message names it.
    """
    bits = OPCODES[type(step)]
    for name, value in _flat(step):
        place = LAYOUT[type(step)].get(name)
        if place is None:
            if value:
                raise SettingError(f"{type(step).__name__}: {name} is {value}; this step has no such field")
            continue
        least = -(1 << place.width - 1) if place.signed else 0
        most = (1 << place.width - place.signed) - 1
        if not least <= value <= most:
            raise SettingError(f"{type(step).__name__}: {name} is {value}; {least} … {most} can be encoded")
        bits |= (value & (1 << place.width) - 1) << place.low
    return np.frombuffer(bits.to_bytes(BYTES, "little"), dtype="<u4")


def decode(words: np.ndarray) -> Step:
    """The step of `WORDS` uint32; the inverse of `encode`.

    Raises:
        SettingError: an unknown opcode.
    """
    bits = int.from_bytes(np.asarray(words, dtype="<u4").tobytes(), "little")
    kinds = {code: kind for kind, code in OPCODES.items()}
    if bits & 0xFF not in kinds:
        raise SettingError(f"opcode {bits & 0xFF}; known are {sorted(kinds)}")
    kind = kinds[bits & 0xFF]
    raw: dict[str, int] = {}
    for name, place in LAYOUT[kind].items():
        value = bits >> place.low & (1 << place.width) - 1
        raw[name] = value - (1 << place.width) if place.signed and value >> place.width - 1 else value
    values: dict[str, Any] = {}
    for field in fields(kind):
        if f"{field.name}_line" in raw:
            values[field.name] = Tensor(*(raw.get(f"{field.name}_{part}", 0) for part in ("line", "pitch", "row")))
        elif field.name == "epsilon":
            values["epsilon"] = raw["epsilon_low"] | raw["epsilon_high"] << 32
        else:
            cast = {"space": Space, "pattern": Pattern, "mode": Mode}.get(field.name)
            wanted = bool if field.type in (bool, "bool") else int
            values[field.name] = (cast or wanted)(raw[field.name])
    return kind(**values)


def assemble(steps: "tuple[Step, ...] | list[Step]") -> bytes:
    """Instructions in order, as they lie in memory."""
    return b"".join(encode(step).tobytes() for step in steps)


def verilog_header() -> str:
    """Localparams `OP_GEMM`, `GEMM_M_LO`, `GEMM_M_W`, … and the values of modes, patterns and spaces."""
    rows = ["// Written by gossamer.accelerator.isa; the layout of instructions is there."]
    rows += [f"localparam OP_{kind.__name__.upper()} = 8'd{code};" for kind, code in OPCODES.items()]
    for title, names in (("MODE", Mode), ("PATTERN", Pattern), ("SPACE", Space)):
        rows += [f"localparam {title}_{entry.name} = {int(entry)};" for entry in names]
    for kind, places in LAYOUT.items():
        for name, place in places.items():
            prefix = f"{kind.__name__}_{name}".upper()
            rows.append(f"localparam {prefix}_LO = {place.low}; localparam {prefix}_W = {place.width};")
    return "\n".join(rows) + "\n"


def _flat(step: Step) -> Iterator[tuple[str, int]]:
    for field in fields(step):
        value = getattr(step, field.name)
        if isinstance(value, Tensor):
            yield f"{field.name}_line", value.line
            yield f"{field.name}_pitch", value.pitch
            yield f"{field.name}_row", value.row
        elif field.name == "epsilon":
            yield "epsilon_low", value & 0xFFFFFFFF
            yield "epsilon_high", value >> 32
        else:
            yield field.name, int(value)
