"""A whole model on an engine, from one and two of its blocks: cycles and energy.

Blocks of a model are alike, so the programs of one and of two blocks give those of all:
first + (layers − 1) × (second − first).
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gossamer.accelerator.program import Program, lower_decode, lower_prefill
from gossamer.accelerator.shapes import Shape, hollow
from gossamer.dataflow.cycles.program import schedule_cycles
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.technology import Technology, energy_mj

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Whole:
    """A run over all blocks on `engine`: cycles, millijoules by what they are spent on. `program` is that of one block,
    and takes `registers`."""

    engine: IntegerEngine
    cycles: int
    energy_mj: dict[str, float]
    program: Program
    registers: tuple[int, ...]


def whole(
    shape: Shape,
    phase: Phase,
    sequence: int,
    engine: IntegerEngine,
    technology: Technology,
    layers: int = 0,
    bits: int = 8,
) -> Whole:
    """Times a model of this shape.

    Args:
        shape: its sizes.
        phase: prefill of `sequence` rows at once, or decode of one token after `sequence` − 1.
        sequence: rows, or positions.
        engine: what it runs on.
        technology: clock and energies.
        layers: blocks; 0: the shape's.
        bits: of the blocks' weights, 8 or 4.

    Raises:
        SettingError: a block that does not fit the engine.
    """
    layers = layers or shape.layers
    registers = (1, sequence - 1) if phase == "decode" else ()
    first = _lowered(shape, 1, phase, sequence, engine, bits)
    cycles, energy = _cost(first, registers, technology)
    if layers > 1:
        second, spent = _cost(_lowered(shape, 2, phase, sequence, engine, bits), registers, technology)
        cycles += (layers - 1) * (second - cycles)
        energy = {name: value + (layers - 1) * (spent[name] - value) for name, value in energy.items()}
    return Whole(engine, cycles, energy, first, registers)


def macs(shape: Shape, phase: Phase, sequence: int, layers: int = 0) -> int:
    """Multiply-accumulates of that run."""
    each = shape.macs(1, sequence - 1) if phase == "decode" else shape.macs(sequence)
    return (layers or shape.layers) * each


def utilisation(shape: Shape, phase: Phase, sequence: int, taken: Whole, bits: int = 8) -> float:
    """The part of the multipliers' cycles that is used, 0 to 1. A cell split for 4-bit weights does twice as much."""
    rows = 1 if phase == "decode" else sequence
    operations = macs(shape, phase, sequence)
    weights = shape.layers * rows * (shape.macs(1) - 2 * shape.heads * shape.head)
    return (operations - weights * (8 - bits) / 8) / (taken.cycles * taken.engine.multipliers)


def _cost(program: Program, registers: tuple[int, ...], technology: Technology) -> tuple[int, dict[str, float]]:
    cycles = schedule_cycles(program.schedule, registers).total
    return cycles, energy_mj(program.schedule, cycles, technology, registers)


def _lowered(shape: Shape, blocks: int, phase: Phase, sequence: int, engine: IntegerEngine, bits: int) -> Program:
    stack = hollow(shape, blocks, sequence, bits)
    if phase == "prefill":
        return lower_prefill(stack, engine, sequence)
    table = np.broadcast_to(np.int16(0), (2, stack.width))
    return lower_decode(replace(stack, table=table), engine, context=sequence)
