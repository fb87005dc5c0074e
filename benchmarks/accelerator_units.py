"""Area of the engine's units beside SwiftTron's, in gate equivalents, that of a whole engine beside the area model, and
the energy of a multiply-accumulate on real and on random operands.

Run: GOSSAMER_DATA=FOLDER python benchmarks/accelerator_units.py
FOLDER holds liberty/sg13g2_stdcell_typ_1p20V_25C.lib (IHP SG13G2, Apache 2.0). Writes
benchmarks/results/accelerator_units.json and .md.

SwiftTron's RTL (arXiv 2304.03986) was synthesised by Yosys and ABC with Nangate45, ours with SG13G2: a gate equivalent
is the area of the smallest two-input NAND of either library, 0.798 and 7.2576 µm². Both without wires.
"""

from pathlib import Path
from typing import Any

from accelerator_area import sg13g2
from gossamer.accelerator.area import AREAS, units_um2
from gossamer.accelerator.engine_files import ENGINES
from gossamer.accelerator.power import Operands, cell_power, random_operands, real_operands
from gossamer.accelerator.simulate import sources
from gossamer.accelerator.synthesis import SRAM_UM2_PER_BIT, synthesize_job
from gossamer.core.files import write_json, write_text
from gossamer.eda.design import Design
from gossamer.eda.liberty import read_liberty
from gossamer.eda.synthesise import synthesise

RESULTS = Path(__file__).resolve().parent / "results" / "accelerator_units"
COMMAND = "python benchmarks/accelerator_units.py"
ENGINE = "small"
NAND_UM2 = 0.798
"""Nangate45's NAND2_X1."""
SWIFTTRON_UM2: dict[str, tuple[float, ...]] = {
    "multiply-accumulate": (1320,),
    "requantisation": (7821,),
    "activation": (7306,),
    "division": (3958, 6221),
}
"""Of one lane, Nangate45; dividers of two widths."""
SWIFTTRON_NS = 14.9
"""Its longest path in Nangate45: a 32-bit division in one cycle."""
TABLE_BITS = 256 * 8
HERTZ, DEPTH = 100e6, 8


def main() -> None:
    liberty = sg13g2()
    nand = read_liberty(liberty).cells["sg13g2_nand2_1"].area

    def area(top: str, **numbers: int) -> float:
        found = synthesise(Design(sources(), top, numbers), liberty)
        return found.area_within(found.top)

    whole, split = area("gs_cell", DEPTH=8, FOUR_BIT=0), area("gs_cell", DEPTH=8, FOUR_BIT=1)
    ours = [
        ("multiply-accumulate", "a cell of 8, by 8", whole / 8),
        ("multiply-accumulate", "the same, split for 4 bits", split / 8),
        ("requantisation", "gs_requant", area("gs_requant", IN=33, OUT=24)),
        ("activation", f"a table's SRAM, {SRAM_UM2_PER_BIT} µm² a bit assumed", TABLE_BITS * SRAM_UM2_PER_BIT),
        ("division", "gs_reciprocal, once a row", area("gs_reciprocal")),
    ]
    units = [
        {"unit": unit, "ours": what, "ge": each / nand, "swifttron_ge": [one / NAND_UM2 for one in SWIFTTRON_UM2[unit]]}
        for unit, what, each in ours
    ]
    engine = {goal: synthesize_job(ENGINE, liberty, goal) for goal in ("area", "delay")}
    modelled = sum(units_um2(ENGINES.load(ENGINE), AREAS.load("sg13g2")).values())
    joules = {
        "random operands": mac_pj(liberty, random_operands(DEPTH)),
        "tiny-lm": mac_pj(liberty, real_operands(DEPTH)),
    }
    splits = {depth: area("gs_cell", DEPTH=depth) / area("gs_cell", DEPTH=depth, FOUR_BIT=0) for depth in (4, 8, 16)}
    write_json(
        RESULTS.with_suffix(".json"),
        {
            "command": COMMAND,
            "units": units,
            "four_bit_by_depth": splits,
            "mac_pj": joules,
            "model_um2": modelled,
            ENGINE: engine,
        },
    )
    write_text(RESULTS.with_suffix(".md"), "\n".join(told(units, splits, joules, engine, modelled)) + "\n")


def mac_pj(liberty: Path, operands: Operands) -> float:
    """Picojoules of one of a cell's products and its share of the rest."""
    return 1e12 * cell_power(ENGINES.load(ENGINE), liberty, operands, HERTZ).total_w / HERTZ / DEPTH


def told(
    units: list[dict[str, Any]],
    splits: dict[int, float],
    joules: dict[str, float],
    engine: dict[str, Any],
    modelled: float,
) -> list[str]:
    """The tables."""
    lines = [f"`{COMMAND}`", "", "| unit | ours | gate equivalents | SwiftTron's |", "|---|---|---:|---:|"]
    for each in units:
        theirs = " to ".join(f"{one:,.0f}" for one in each["swifttron_ge"])
        lines.append(f"| {each['unit']} | {each['ours']} | {each['ge']:,.0f} | {theirs} |")
    said = ", ".join(f"{ratio:.2f} at depth {depth}" for depth, ratio in splits.items())
    lines += ["", f"A cell that splits for 4 bits (twice the rate) by one that does not: {said}.", ""]
    said = ", ".join(f"{each:.2f} pJ on {name}" for name, each in joules.items())
    lines += [f"A multiply-accumulate of a cell of 8, split for 4 bits, at 8 bits: {said} (toggles × liberty).", ""]
    lines += [f"| whole engine `{ENGINE}` | least area | least delay |", "|---|---:|---:|"]
    rows = {
        "gates, mm²": [f"{each['logic_area_um2'] / 1e6:.2f}" for each in engine.values()],
        "… by the area model": [f"{modelled / 1e6:.2f}", ""],
        "registers' share": [f"{each['sequential_percent']:.0f} %" for each in engine.values()],
        "longest path, ns": [
            f"{each['critical_path_ns']:.2f} (`{each['critical_module']}`)" for each in engine.values()
        ],
        "memories, KiB": [f"{each['sram_bits'] / 8192:,.0f}" for each in engine.values()],
    }
    names = engine["area"]["units"]
    rows |= {f"`{unit}`, mm²": [f"{e['units'][unit]['area_um2'] / 1e6:.3f}" for e in engine.values()] for unit in names}
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return [
        *lines,
        "",
        f"SwiftTron's longest path is {SWIFTTRON_NS} ns in Nangate45, a combinational division; ours holds none.",
    ]


if __name__ == "__main__":
    main()
