"""Area of an engine by unit: a stated model, sums of terms such as `rows*columns*depth` at so many µm² each.

The coefficients are in `areas/*.yaml`, fitted to modules synthesised at a few sizes (`benchmarks/accelerator_area.py`).
Gates only, without wires and gaps between cells; memories by µm² a bit (`synthesis.SRAM_UM2_PER_BIT`).
"""

from collections.abc import Mapping
from math import log2, prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gossamer.accelerator.engine_files import ENGINES
from gossamer.accelerator.synthesis import SRAM_UM2_PER_BIT
from gossamer.core.described import Described
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import SCORE_TILES, IntegerEngine


class AreaModel(BaseModel):
    """µm² of each term of each unit. A term is a product of `sizes`, joined by `*`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    units: Mapping[str, Mapping[str, float]]
    sram_um2_per_bit: float = Field(SRAM_UM2_PER_BIT, gt=0)
    source: str

    @field_validator("units")
    @classmethod
    def _known(cls, units: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
        known = sizes(ENGINES.load("small").model_dump())
        for term in (term for terms in units.values() for term in terms):
            if odd := sorted(set(term.split("*")) - set(known)):
                raise ValueError(f"{term} has {odd[0]}: terms are products of {', '.join(known)}")
        return units


AREAS = Described("area model", AreaModel, Path(__file__).parent / "areas", SettingError)
"""Processes: the presets, and how a user's own file is read; raises `SettingError`."""


def area_um2(engine: IntegerEngine, model: AreaModel) -> dict[str, float]:
    """Area of each unit and each memory, in µm²."""
    memories = {name: bits * model.sram_um2_per_bit for name, bits in memory_bits(engine).items()}
    return {**units_um2(engine, model), **memories}


def units_um2(engine: IntegerEngine, model: AreaModel) -> dict[str, float]:
    """Area of each unit's gates."""
    given = sizes(engine.model_dump())
    return {
        name: sum(each * prod(given[size] for size in term.split("*")) for term, each in terms.items())
        for name, terms in model.units.items()
    }


def sizes(numbers: Mapping[str, Any]) -> dict[str, float]:
    """What areas scale with, by name: the engine's `numbers`, those of a line, `split` (1 where cells are split for
    4-bit weights, else 0), levels of the shifter that picks a row, and `one`."""
    line_rows = max(numbers["rows"], numbers["columns"])
    return {
        **{name: float(value) for name, value in numbers.items()},
        "one": 1.0,
        "split": float(numbers["four_bit"]),
        "line_bytes": float(line_rows * numbers["depth"]),
        "levels": log2(line_rows),
    }


def memory_bits(engine: IntegerEngine) -> dict[str, int]:
    """Bits of each memory. Every lane of every row looks up tables of its own."""
    return {
        "unified memory": 8 * engine.sram_bytes,
        "parameter memory": 64 * engine.parameters,
        "group memory": 8 * engine.columns * engine.groups * engine.four_bit,
        "table memories": 8 * 256 * engine.tables * engine.rows * engine.lanes,
        "octave memory": 10 * engine.rows * (engine.chunks + SCORE_TILES),
        "instruction memory": 512 * engine.instructions,
    }
