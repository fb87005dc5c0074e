"""Area of an engine by unit: a stated model, sums of terms such as `rows*columns*depth` at so many µm² each.

The coefficients are in `areas/*.yaml`, fitted to modules synthesised at a few sizes (`benchmarks/accelerator_area.py`).
Gates only, without wires and gaps between cells; memories by µm² a bit (`synthesis.SRAM_UM2_PER_BIT`).
"""

from collections.abc import Mapping
from math import log2, prod
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from gossamer.accelerator.engine_files import load_engine
from gossamer.accelerator.synthesis import SRAM_UM2_PER_BIT
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine

MODELS = Path(__file__).parent / "areas"


class AreaModel(BaseModel):
    """µm² of each term of each unit. A term is a product of `sizes`, joined by `*`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    units: Mapping[str, Mapping[str, float]]
    sram_um2_per_bit: float = Field(SRAM_UM2_PER_BIT, gt=0)
    source: str


def load_areas(ref: str) -> AreaModel:
    """The area model of a process: a preset's name or a YAML file.

    Raises:
        SettingError: no such file, or not of this form.
    """
    names = sorted(path.stem for path in MODELS.glob("*.yaml"))
    path = MODELS / f"{ref}.yaml" if ref in names else Path(ref).expanduser()
    if not path.is_file():
        raise SettingError(f"no area model {ref!r}: give a YAML file or one of {', '.join(names)}")
    try:
        model = AreaModel(**yaml.safe_load(path.read_text(encoding="utf-8")))
        units_um2(load_engine("small"), model)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError, KeyError) as error:
        raise SettingError(f"area model {path}: {' '.join(str(error).split())}") from error
    return model


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
        "octave memory": 10 * engine.rows * engine.chunks,
        "instruction memory": 512 * engine.instructions,
    }
