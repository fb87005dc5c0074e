"""The area model of the integer engine: modules synthesised at a few sizes, and what their areas scale with.

Run: GOSSAMER_DATA=FOLDER python benchmarks/accelerator_area.py [--seconds 600]
FOLDER holds liberty/sg13g2_stdcell_typ_1p20V_25C.lib (IHP SG13G2, Apache 2.0). Writes
src/gossamer/accelerator/areas/sg13g2.yaml, and benchmarks/results/accelerator_area.json and .md with every point and
what the model says there. A module that takes longer than --seconds is left out of the fit and named.

Terms are chosen by what the RTL says (a shifter over a line is `line_bytes*levels`); their coefficients, none below
zero, are those of the least squared relative error. A module that many instances of are used is a unit's share of
`instances` each.
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

from gossamer.accelerator.area import MODELS, sizes
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
    """A module, the unit it belongs to, how many of it there are, what one's area scales with, and the sizes that it is
    synthesised at (what differs from `SMALL`). `own`: without the modules within."""

    unit: str
    module: str
    instances: str
    terms: tuple[str, ...]
    points: tuple[Mapping[str, Any], ...]
    own: bool = False


PARTS = (
    Part("array", "gs_cell", "rows*columns", ("one", "depth", "split", "split*depth"),
         tuple({"depth": depth, "four_bit": split} for depth in (4, 8, 16) for split in (False, True))),
    Part("control", "gs_control", "one", ("one",), ({},)),
    Part("post-processing", "gs_reciprocal", "rows", ("one",), ({},)),
    Part("post-processing", "gs_feed", "rows", ("one", "depth"), ({}, {"depth": 8})),
    Part("products' control", "gs_issue", "one", ("one",), ({},)),
    Part("products' control", "gs_drain", "one", ("one",), ({},)),
    Part("products' control", "gs_plan", "one", ("one",), ({},)),
    Part("unified memory's ports", "gs_memory", "one", ("one", "banks", "line_bytes", "banks*line_bytes"),
         ({}, {"banks": 8}, {"columns": 8}, {"columns": 8, "banks": 8})),
    Part("norm", "gs_norm", "one", ("one", "norm_rows", "norm_rows*lanes", "norm_rows*line_bytes"),
         ({}, {"norm_rows": 4}, {"lanes": 2}, {"columns": 8})),
    Part("add", "gs_add", "one", ("one", "norm_rows", "norm_rows*lanes", "norm_rows*line_bytes"),
         ({}, {"norm_rows": 4}, {"lanes": 2}, {"columns": 8})),
    Part("load", "gs_load", "one", ("one", "line_bytes", "bus_bytes"), ({}, {"columns": 8}, {"bus_bytes": 8})),
    Part("store", "gs_store", "one", ("one", "line_bytes*levels", "bus_bytes"),
         ({}, {"columns": 8}, {"bus_bytes": 8})),
    Part("sequencer", "gs_sequencer", "one", ("one",), ({"bus_bytes": 16},)),
    Part("post-processing", "gs_post", "rows", ("one", "lanes", "depth"),
         ({}, {"lanes": 2}, {"depth": 8})),
    Part("products' control", "gs_gemm", "one", ("one", "line_bytes*levels", "columns*depth"),
         ({}, {"rows": 2, "columns": 2, "depth": 2}, {"columns": 8}), own=True),
)  # fmt: skip


def measure(part: Part, point: Mapping[str, Any], liberty: Path, seconds: float) -> float:
    """The area of a part's module at a point, in µm²."""
    engine = _engine(point)
    source = next(path for path in sources() if path.name == f"{part.module}.v").read_text(encoding="utf-8")
    taken = {name: value for name, value in parameters(engine).items() if f"parameter {name} " in _squeezed(source)}
    found = synthesise(Design(sources(), part.module, taken), liberty, seconds=seconds)
    return found.modules[part.module].area_um2 if part.own else found.area_um2


def fit(part: Part, points: list[Mapping[str, Any]], areas: list[float]) -> dict[str, float]:
    """µm² of each term, of one instance."""
    rows = np.array([_terms(part, point) for point in points]) / np.array(areas)[:, None]
    scale = rows.max(axis=0)
    found, _ = nnls(rows / scale, np.ones(len(points)))
    return {term: float(each) for term, each in zip(part.terms, found / scale, strict=True) if each > 0}


def modelled(part: Part, point: Mapping[str, Any], fitted: Mapping[str, float]) -> float:
    """The fit at a point."""
    return sum(fitted.get(term, 0.0) * value for term, value in zip(part.terms, _terms(part, point), strict=True))


def _terms(part: Part, point: Mapping[str, Any]) -> list[float]:
    given = sizes(_engine(point).model_dump())
    return [float(np.prod([given[size] for size in term.split("*")])) for term in part.terms]


def _engine(point: Mapping[str, Any]) -> IntegerEngine:
    """`SMALL` but for the point's sizes; columns and bus are widened to the depth, as an engine's must be."""
    numbers = {**SMALL, **point}
    return IntegerEngine(
        **{**numbers, **{name: max(numbers[name], numbers["depth"]) for name in ("columns", "bus_bytes")}}
    )


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _term(instances: str, term: str) -> str:
    """Their product, by name."""
    return "*".join(size for size in (*instances.split("*"), *term.split("*")) if size != "one") or "one"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    seconds = parser.parse_args().seconds
    folder = os.environ.get("GOSSAMER_DATA")
    if not folder or not (liberty := Path(folder) / LIBERTY).is_file():
        raise SystemExit(f"GOSSAMER_DATA names no folder that holds {LIBERTY}")
    units: dict[str, dict[str, float]] = {}
    points: list[dict[str, Any]] = []
    for part in PARTS:
        areas: list[tuple[Mapping[str, Any], float]] = []
        for point in part.points:
            try:
                areas.append((point, measure(part, point, liberty, seconds)))
                print(f"{part.module} {dict(point)}: {areas[-1][1]:,.0f}", flush=True)
            except ToolError as error:
                print(f"{part.module} {dict(point)}: {error}", flush=True)
                points.append({"module": part.module, **point, "area_um2": None, "said": str(error)})
        if not areas:
            continue
        fitted = fit(part, [point for point, _ in areas], [area for _, area in areas])
        unit = units.setdefault(part.unit, {})
        for term, each in fitted.items():
            name = _term(part.instances, term)
            unit[name] = unit.get(name, 0.0) + each
        points += [
            {"module": part.module, **point, "area_um2": area, "model_um2": modelled(part, point, fitted)}
            for point, area in areas
        ]
        _write(units, points)


def _write(units: Mapping[str, Mapping[str, float]], points: list[dict[str, Any]]) -> None:
    rounded = {name: {term: round(each, 1) for term, each in terms.items()} for name, terms in units.items()}
    model = {
        "units": rounded,
        "sram_um2_per_bit": SRAM_UM2_PER_BIT,
        "source": f"{COMMAND}: Yosys and ABC with IHP SG13G2's typical corner; cells alone, without wires",
    }
    MODELS.mkdir(exist_ok=True)
    write_text(MODELS / "sg13g2.yaml", yaml.safe_dump(model, sort_keys=False))
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "accelerator_area.json", {"smallest": SMALL, "points": points, "units": rounded})
    lines = [f"`{COMMAND}`; sizes that differ from {_words(SMALL)}.", ""]
    lines += ["| module | sizes | synthesised, µm² | model, µm² |", "|---|---|---:|---:|"]
    for each in points:
        at = _words({name: value for name, value in each.items() if name in SMALL})
        figures = [f"{each[key]:,.0f}" if each.get(key) else "did not finish" for key in ("area_um2", "model_um2")]
        lines.append(f"| `{each['module']}` | {at} | {figures[0]} | {figures[1]} |")
    write_text(RESULTS / "accelerator_area.md", "\n".join(lines) + "\n")


def _words(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {int(value)}" for name, value in numbers.items())


if __name__ == "__main__":
    main()
