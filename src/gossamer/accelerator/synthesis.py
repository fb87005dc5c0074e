"""Area, timing and power of an engine: its units as gates of a liberty file's cells, its memories apart."""

from collections import Counter
from pathlib import Path
from typing import Any

from gossamer.accelerator.engine_files import ENGINES
from gossamer.accelerator.power import array_power
from gossamer.accelerator.simulate import parameters, sources
from gossamer.core.progress import SILENT, Progress
from gossamer.eda.design import Design
from gossamer.eda.synthesise import Goal, Synthesis, synthesise

UNITS = (
    "gs_control",
    "gs_sequencer",
    "gs_load",
    "gs_store",
    "gs_memory",
    "gs_parameters",
    "gs_gemm",
    "gs_norm",
    "gs_add",
)
"""Modules directly below the top: the report's rows."""
SRAM_UM2_PER_BIT = 4.5
"""An SRAM's area at 130 nm with its periphery: assumed, from no data sheet, and the same for every shape. Use a memory
compiler's figures before tape-out."""


def synthesize_job(config: str, liberty: Path, goal: Goal = "area", progress: Progress = SILENT) -> dict[str, Any]:
    """Area by unit, cells, critical path and memories of the engine `config` in the cells of `liberty`, which are
    chosen for the least area, or made larger for the least delay; and the power of its array at that path's clock, on
    a trained model's operands (see `array_power`).

    Raises:
        GossamerError: an engine or liberty file that is none, a tool that is missing.
    """
    engine = ENGINES.load(config)
    progress.say("synthesising")
    found = synthesise(Design(sources(), "gs_top", parameters(engine)), liberty, goal=goal, seconds=7200)
    slow = found.slowest
    bits = sum(use.bits for use in found.srams)
    progress.say("simulating a cell's gates")
    power = array_power(engine, liberty, 1e9 / found.critical_path_ns)
    return {
        "engine": engine.model_dump(),
        "liberty": liberty.name,
        "goal": goal,
        "logic_area_um2": found.area_um2,
        "sequential_percent": 100 * found.sequential_share,
        "units": {name: {"area_um2": area} for name, area in _units(found)},
        "modules": {
            module.name: {
                "instances": module.instances,
                "area_um2": module.area_um2,
                "path_ns": None if module.path is None else module.path.ns,
            }
            for module in found.modules.values()
        },
        "cells": dict(Counter(found.cells).most_common()),
        "critical_path_ns": found.critical_path_ns,
        "critical_module": None if slow is None else slow.name,
        "sram_bits": bits,
        "srams": [
            {"module": use.module, "width": use.width, "depth": use.depth, "instances": use.instances}
            for use in found.srams
        ],
        "power": power,
        "estimated": {"sram_area_um2": bits * SRAM_UM2_PER_BIT, "clock_mhz": 1e3 / found.critical_path_ns},
        "notes": [
            "paths end at module borders and have no wires: a bound, not a sign-off",
            f"SRAM area by an assumed {SRAM_UM2_PER_BIT} µm² a bit",
            "power is the array's alone, all cells multiplying 8 bits in every cycle, without wires and clock tree",
        ],
    }


def _units(found: Synthesis) -> list[tuple[str, float]]:
    names = [module for module in found.modules if any(module.startswith(unit) for unit in UNITS)]
    top = [name for name in names if any(name == unit or name.startswith(f"{unit}$") for unit in UNITS)]
    return [(name, found.area_within(name)) for name in sorted(top or names)]
