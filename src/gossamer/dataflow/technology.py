"""What a silicon process costs the integer engine: clock and energies, with where each figure is from."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from gossamer.core.described import Described
from gossamer.core.errors import SettingError
from gossamer.dataflow.schedule import Gemm, Load, Pattern, Schedule, Store


class Technology(BaseModel):
    """A process. Energies in picojoules; `mac_pj` of one 8-bit multiply-accumulate with its share of the array,
    `sram_pj_per_byte` of the unified memory, `dram_pj_per_byte` of the outer one. `static_mw` is spent all the time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    clock_mhz: float = Field(gt=0)
    mac_pj: float = Field(gt=0)
    sram_pj_per_byte: float = Field(ge=0)
    dram_pj_per_byte: float = Field(ge=0)
    static_mw: float = Field(0, ge=0)
    source: str


TECHNOLOGIES = Described("technology", Technology, Path(__file__).parent / "technologies", SettingError)
"""The presets, and how a user's own file is read; raises `SettingError`."""


def energy_mj(
    schedule: Schedule, cycles: int, technology: Technology, registers: Sequence[int] = ()
) -> dict[str, float]:
    """Energy of a run in millijoules, by what it is spent on: `array`, `sram`, `dram`, `static`. An estimate.

    Every chunk of a tile costs all its multipliers, used or not. The unified memory is read by tile operands and moved
    through by every byte of the bus; what norms and additions touch is not counted.
    """
    engine, values = schedule.engine, (0, *registers)
    macs = sram = outer = 0
    for step in schedule:
        if isinstance(step, Gemm):
            given = values[step.register]
            n, k = step.sizes(given)
            tile = engine.columns * (2 if step.four_bit else 1)
            chunks = -(-step.m // engine.rows) * -(-n // tile) * -(-k // engine.depth)
            macs += chunks * engine.multipliers
            sram += chunks * (engine.rows + engine.columns) * engine.depth
        elif isinstance(step, Load | Store):
            outer += transfer_bytes(schedule, step, values)
    seconds = cycles / (technology.clock_mhz * 1e6)
    return {
        "array": macs * technology.mac_pj * 1e-9,
        "sram": (sram + outer) * technology.sram_pj_per_byte * 1e-9,
        "dram": outer * technology.dram_pj_per_byte * 1e-9,
        "static": seconds * technology.static_mw,
    }


def transfer_bytes(schedule: Schedule, step: Load | Store, registers: Sequence[int]) -> int:
    """Bytes that a transfer moves over the bus, whole words; `registers` are R[0], R[1], …"""
    engine = schedule.engine
    if isinstance(step, Store):
        size = engine.line_bytes if step.pattern == Pattern.LINES else step.chunks * engine.bus_bytes
        return step.count * size
    given = registers[step.register]
    if step.pattern == Pattern.LINES:
        return step.words(engine.line_rows, given) * engine.bus_bytes
    words = -(-step.chunks * engine.depth // engine.bus_bytes)
    return step.rows(given) * words * engine.bus_bytes
