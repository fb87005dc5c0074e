"""The page of an exploration of engines for a model (`accelerator.explore_job`'s result)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.core.files import write_text
from gossamer.core.units import format_bytes
from gossamer.report.document import chart, document, section
from gossamer.report.exploration_charts import floorplan, front, utilisation
from gossamer.report.markup import el, line, table, text
from gossamer.report.sections import facts_table

_UNITS = {"latency_ms": ("Latency", "ms"), "area_mm2": ("Area", "mm²"), "energy_mj": ("Energy", "mJ")}


def write_exploration(folder: Path, result: Mapping[str, Any]) -> Path:
    """Writes `report.html` into the folder. Raises `OutputError` where that is not possible."""
    path = folder / "report.html"
    write_text(path, exploration(result))
    return path


def exploration(result: Mapping[str, Any]) -> str:
    """The page as HTML; equal results give equal bytes."""
    chosen, time = result["chosen"], result["timeline"]
    busy = {
        unit: sum(bar["busy"] for bar in time["bars"] if bar["unit"] == unit) / time["cycles"]
        for unit in ("compute", "load", "store")
    }
    at_work = ", ".join(f"{unit} {share:.0%}" for unit, share in busy.items())
    parts = [
        _headline(result),
        section(
            "points",
            "Latency, area, energy",
            f"{len(result['points'])} engines, {len(result['pareto'])} of them beaten by no other (large, outlined). "
            "Circles have 8-bit weights, diamonds 4-bit ones; the ring is the chosen engine, dashed lines the budget.",
            chart("points-chart", front(result["points"], result["budget"])),
        ),
        section("front", "Beaten by no other", "", _front_table(result)),
        section(
            "area",
            "Where the area goes",
            f"The chosen engine's {chosen['area_mm2']:.3g} mm², each tile as large as its part: not a placement.",
            chart("area-chart", floorplan(chosen["area_um2"])),
        ),
        section(
            "time",
            "What the units do",
            f"One block on the chosen engine, {time['cycles']:,} cycles. Busy: {at_work}. The same is in trace.json, "
            "for ui.perfetto.dev.",
            chart("time-chart", utilisation(time["bars"], time["cycles"])),
        ),
        section("how", "How this was made", "", _provenance(result)),
    ]
    return document(f"Engines for {result['shape']['name']} by Gossamer", "".join(parts))


def _headline(result: Mapping[str, Any]) -> str:
    shape, chosen, budget = result["shape"], result["chosen"], result["budget"]
    tiles = []
    for key, (name, unit) in _UNITS.items():
        verdict = f"within {budget[key]:g} {unit}" if key in budget else "no limit"
        tiles.append(
            el(
                "div",
                el("dt", name),
                el("dd", text(f"{chosen[key]:.3g} {unit}")),
                el("p", text(verdict)),
                class_="tile",
            )
        )
    used = f"{chosen['utilisation_percent']:.0f} %"
    tiles.append(el("div", el("dt", "Multipliers in use"), el("dd", used), el("p", "over all blocks"), class_="tile"))
    run = f"prefill of {result['sequence']}" if result["phase"] == "prefill" else f"token {result['sequence']}"
    about = f"{shape['layers']} blocks of width {shape['width']}, {run}"
    summary = (
        f"An array of {chosen['rows']} × {chosen['columns']} cells × {chosen['depth']} products with "
        f"{chosen['lanes']} lanes, {format_bytes(chosen['sram_bytes'])} of unified memory and {chosen['bits']}-bit "
        f"weights: the least {result['goal']} within the budget. All figures are estimates."
    )
    return el(
        "header",
        el("p", "Gossamer", class_="brand"),
        el("h1", text(f"Engines for {shape['name']}")),
        el("p", text(about), class_="about"),
        el("p", text(summary), class_="summary"),
        el("dl", *tiles, class_="tiles"),
    )


def _front_table(result: Mapping[str, Any]) -> str:
    rows = [
        line(
            text(f"{point['rows']} × {point['columns']} × {point['depth']}"),
            *(
                el("td", text(cell), class_="number")
                for cell in (
                    str(point["lanes"]), format_bytes(point["sram_bytes"]), str(point["bits"]),
                    f"{point['latency_ms']:.3g} ms", f"{point['area_mm2']:.3g} mm²", f"{point['energy_mj']:.3g} mJ",
                    f"{point['utilisation_percent']:.0f} %",
                )
            ),
        )
        for point in result["pareto"]
    ]  # fmt: skip
    names = ("Lanes", "Memory", "Weight bits", "Latency", "Area", "Energy", "In use")
    return table(["Array", *(el("span", name, class_="number") for name in names)], rows, "data")


def _provenance(result: Mapping[str, Any]) -> str:
    technology = result["technology"]
    facts = {
        "clock": f"{technology['clock_mhz']:g} MHz",
        "energy": technology["source"],
        "area": result["area_source"],
        "left out": "; ".join(f"{count} × {reason}" for reason, count in result["skipped"].items()) or "none",
        "engine": result["chosen"]["engine"],
    }
    return facts_table(facts) + "".join(el("p", text(note), class_="small") for note in result["notes"])
