"""The area model of the integer engine: modules synthesised at a few sizes, and what their areas scale with.

Run: GOSSAMER_DATA=FOLDER python benchmarks/accelerator_area.py [--seconds 600]
FOLDER holds liberty/sg13g2_stdcell_typ_1p20V_25C.lib (IHP SG13G2, Apache 2.0). Writes
src/gossamer/accelerator/areas/sg13g2.yaml, and benchmarks/results/accelerator_area.json and .md with every point and
what the model says there. A module that takes longer than --seconds is left out of the fit and named.

Terms are chosen by what the RTL says (a shifter over a line is `line_bytes*levels`); their coefficients, none below
zero, are those of the least squared relative error. A module that is synthesised at a single size scales by a single
term.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.optimize import nnls

from gossamer.accelerator.area import AREAS, sizes
from gossamer.accelerator.simulate import parameters, sources
from gossamer.accelerator.synthesis import SRAM_UM2_PER_BIT
from gossamer.core.files import write_json, write_text
from gossamer.dataflow.engine import IntegerEngine
from gossamer.eda.design import Design
from gossamer.eda.synthesise import synthesise
from gossamer.eda.tools import ToolError

RESULTS = Path(__file__).resolve().parent / "results"
LIBERTY = "liberty/sg13g2_stdcell_typ_1p20V_25C.lib"
COMMAND = "python benchmarks/accelerator_area.py"
SMALL = {"rows": 4, "columns": 4, "depth": 4, "lanes": 1, "norm_rows": 2, "banks": 4, "bus_bytes": 4, "four_bit": False}


@dataclass(frozen=True)
class Part:
    """Modules of a unit, synthesised under `top` at some sizes (what differs from `SMALL`): what the area of each, all
    its instances under `top` together, scales with. Of `top` itself there are `instances`. What has no terms is counted
    as constant."""

    unit: str
    top: str
    points: tuple[Mapping[str, Any], ...]
    terms: Mapping[str, tuple[str, ...]]
    instances: str = "one"


DEPTHS = tuple({"depth": depth, "four_bit": split} for depth in (4, 8, 16) for split in (False, True))
EIGHT = {"rows": 8, "depth": 8, "lanes": 4, "four_bit": True}
WALKS = ({}, {"lanes": 2}, {"norm_rows": 4}, {"depth": 8, "norm_rows": 8, "lanes": 4})
LANES = ({"lanes": 2}, {"lanes": 4, "depth": 8}, {"lanes": 4, "depth": 16})
BUSES = ({}, {"columns": 16}, {"bus_bytes": 16}, {"columns": 16, "bus_bytes": 16}, {"columns": 32, "bus_bytes": 32})
ELEMENT = ("norm_rows*lanes",)
WINDOW = ("one", "norm_rows*line_bytes")
PARTS = (
    Part("array", "gs_cell", DEPTHS, {"gs_cell": ("one", "depth", "split", "split*depth")}, "rows*columns"),
    Part("control", "gs_control", ({},), {}),
    Part("unified memory's ports", "gs_memory", ({}, {"banks": 8}, {"columns": 8}, {"columns": 8, "banks": 8}),
         {"gs_memory": ("one", "banks", "line_bytes", "banks*line_bytes"),
          "gs_bank": ("banks", "banks*line_bytes"), "gs_sram": ("banks", "banks*line_bytes")}),
    Part("post-processing", "gs_reciprocal", ({},), {}, "rows"),
    Part("post-processing", "gs_feed", ({}, {"depth": 8}, {"depth": 16}), {"gs_feed": ("one", "depth")}, "rows"),
    Part("products' control", "gs_issue", ({},), {}),
    Part("products' control", "gs_drain", ({},), {}),
    Part("products' control", "gs_plan", ({},), {}),
    Part("norm", "gs_norm", WALKS,
         dict.fromkeys(("gs_norm", "gs_normalise", "gs_product", "gs_shift"), ELEMENT)
         | {"gs_moments": ("norm_rows", "norm_rows*lanes")} | dict.fromkeys(("gs_take", "gs_put"), WINDOW)),
    Part("add", "gs_add", WALKS,
         dict.fromkeys(("gs_add", "gs_product", "gs_shift"), ELEMENT) | dict.fromkeys(("gs_take", "gs_put"), WINDOW)),
    Part("post-processing", "gs_post", LANES,
         dict.fromkeys(("gs_requant", "gs_product", "gs_shift", "gs_exponential", "gs_side", "gs_dual"), ("lanes",))
         | {"gs_post": ("depth", "lanes"), "gs_softmax": ("depth", "lanes")}, "rows"),
    Part("load", "gs_load", BUSES, {"gs_load": ("one", "line_bytes", "bus_bytes")}),
    Part("store", "gs_store", BUSES, {"gs_store": ("one", "line_bytes*levels", "bus_bytes")}),
    Part("sequencer", "gs_sequencer", ({"bus_bytes": 4}, {"bus_bytes": 16}, {"columns": 8, "bus_bytes": 32}),
         {"gs_sequencer": ("one", "bus_bytes")}),
    Part("products' shifters", "gs_gemm", (EIGHT, EIGHT | {"rows": 4, "lanes": 2}, EIGHT | {"rows": 16}),
         {"gs_gemm": ("rows*lanes", "line_bytes*levels")}),
)  # fmt: skip
OWN = ("gs_gemm",)
"""Tops whose modules are other parts: only their own cells count."""


def measure(part: Part, point: Mapping[str, Any], liberty: Path, seconds: float) -> dict[str, float]:
    """The area of each module under a part's top at a point, in µm²; instances together."""
    source = next(path for path in sources() if path.name == f"{part.top}.v").read_text(encoding="utf-8")
    named = {
        name: value for name, value in parameters(_engine(point)).items() if f"parameter {name} " in _plain(source)
    }
    found = synthesise(Design(sources(), part.top, named), liberty, seconds=seconds)
    areas: dict[str, float] = {}
    for module in found.modules.values():
        name = module.name.split("#")[0]  # one module with other parameters
        if part.top not in OWN or name == part.top:
            areas[name] = areas.get(name, 0.0) + module.area_um2 * module.instances
    return areas


def fit(terms: tuple[str, ...], points: list[Mapping[str, Any]], areas: list[float]) -> dict[str, float]:
    """µm² of each term; with fewer points than terms only the last terms are used."""
    terms = terms[-len(points) :]
    rows = np.array([_values(terms, point) for point in points]) / np.array(areas)[:, None]
    scale = rows.max(axis=0)
    found, _ = nnls(rows / scale, np.ones(len(points)))
    return {term: float(each) for term, each in zip(terms, found / scale, strict=True) if each > 0}


def _values(terms: tuple[str, ...], point: Mapping[str, Any]) -> list[float]:
    given = sizes(_engine(point).model_dump())
    return [float(np.prod([given[size] for size in term.split("*")])) for term in terms]


def _engine(point: Mapping[str, Any]) -> IntegerEngine:
    """`SMALL` but for the point's sizes; columns and bus are widened to the depth, as an engine's must be."""
    numbers = {**SMALL, **point}
    wide = {name: max(numbers[name], numbers["depth"]) for name in ("columns", "bus_bytes")}
    return IntegerEngine(**{**numbers, **wide})


def _plain(text: str) -> str:
    return " ".join(text.split())


def _term(instances: str, term: str) -> str:
    """Their product, by name."""
    return "*".join(size for size in (*instances.split("*"), *term.split("*")) if size != "one") or "one"


def sg13g2() -> Path:
    """The liberty file; ends the script where there is none."""
    folder = os.environ.get("GOSSAMER_DATA")
    if not folder or not (liberty := Path(folder) / LIBERTY).is_file():
        raise SystemExit(f"skipped: GOSSAMER_DATA names no folder that holds {LIBERTY}")
    return liberty


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    seconds = parser.parse_args().seconds
    liberty = sg13g2()
    units: dict[str, dict[str, float]] = {}
    points: list[dict[str, Any]] = []
    for part in PARTS:
        found: list[tuple[Mapping[str, Any], dict[str, float]]] = []
        for point in part.points:
            try:
                found.append((point, measure(part, point, liberty, seconds)))
                print(f"{part.top} {dict(point)}: {sum(found[-1][1].values()):,.0f}", flush=True)
            except ToolError as error:
                print(f"{part.top} {dict(point)}: {error}", flush=True)
                points.append({"module": part.top, **point, "area_um2": None, "limit_s": seconds, "said": str(error)})
        at = [point for point, _ in found]
        modelled = [0.0] * len(found)
        for module in [name for name, area in found[0][1].items() if area > 0] if found else []:
            fitted = fit(part.terms.get(module, ("one",)), at, [areas[module] for _, areas in found])
            unit = units.setdefault(part.unit, {})
            for term, each in fitted.items():
                name = _term(part.instances, term)
                unit[name] = unit.get(name, 0.0) + each
                modelled = [sum_ + each * _values((term,), point)[0] for sum_, point in zip(modelled, at, strict=True)]
        points += [
            {
                "module": part.top,
                **point,
                "area_um2": sum(areas.values()),
                "model_um2": model,
                "modules": areas,
            }
            for (point, areas), model in zip(found, modelled, strict=True)
        ]
    _write(units, points)


def _write(units: Mapping[str, Mapping[str, float]], points: list[dict[str, Any]]) -> None:
    rounded = {name: {term: round(each, 1) for term, each in terms.items()} for name, terms in units.items()}
    model = {
        "units": rounded,
        "sram_um2_per_bit": SRAM_UM2_PER_BIT,
        "source": f"{COMMAND}: Yosys and ABC with IHP SG13G2's typical corner; cells alone, without wires",
    }
    write_text(AREAS.folder / "sg13g2.yaml", yaml.safe_dump(model, sort_keys=False))
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "accelerator_area.json", {"smallest": SMALL, "points": points, "units": rounded})
    lines = [f"`{COMMAND}`; sizes that differ from {_words(SMALL)}.", ""]
    lines += ["| module | sizes | synthesised, µm² | model, µm² |", "|---|---|---:|---:|"]
    for each in points:
        at = _words({name: value for name, value in each.items() if name in SMALL})
        figures = [f"{each[key]:,.0f}" if each.get(key) else "" for key in ("area_um2", "model_um2")]
        figures[0] = figures[0] or f"not within {each['limit_s']:g} s"
        lines.append(f"| `{each['module']}` | {at} | {figures[0]} | {figures[1]} |")
    write_text(RESULTS / "accelerator_area.md", "\n".join(lines) + "\n")


def _words(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {int(value)}" for name, value in numbers.items())


if __name__ == "__main__":
    main()
