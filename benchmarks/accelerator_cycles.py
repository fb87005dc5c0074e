"""How well the integer engine is used: Table I and the targets it is measured by, by the cycle model.

Run: python benchmarks/accelerator_cycles.py
Writes benchmarks/results/accelerator_cycles.json and accelerator_cycles.md, accelerator_targets.md.

Cycles are the cycle model's, which equals the RTL's counter to the cycle wherever both ran (tests/accelerator/rtl).
Nothing is measured on silicon. SwiftTron's figures are its paper's (arXiv 2304.03986); the utilisation of its array
follows from its released RTL: K / (K + C + 1) for one tile.
"""

from pathlib import Path
from typing import Any

from gossamer.accelerator.engine_files import ENGINES
from gossamer.accelerator.table1 import CASES, GPU, row
from gossamer.core.files import write_json, write_text
from gossamer.dataflow.cycles.gemm import gemm_cycles
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Gemm, Mode, Tensor
from gossamer.dataflow.technology import TECHNOLOGIES, Technology

RESULTS = Path(__file__).resolve().parent / "results"
COMMAND = "python benchmarks/accelerator_cycles.py"


def utilisation(engine: IntegerEngine, k: int) -> float:
    """Of the multipliers, in products of 512 × 512 results over `k`."""
    step = Gemm(Tensor(0, 64), Tensor(2048, 64), Tensor(4096, 64), 512, 512, k, Mode.INT8)
    return 512 * 512 * k / (gemm_cycles(engine, step, (0,) * 8) * engine.multipliers)


def swifttron(k: int, columns: int = 64) -> float:
    """Of a 64 × 64 array that stalls while it is read out."""
    return k / (k + columns + 1)


def targets(rows: list[dict[str, Any]], engine: IntegerEngine, technology: Technology) -> list[tuple[str, str, str]]:
    """What is asked for, the figure, whether it is met."""
    wide = engine.model_copy(update={"bank_lines": 2 * engine.bank_lines})
    found = {(each["model"], each["phase"], each["sequence"]): each for each in rows}

    def ratio(each: dict[str, Any]) -> float:
        return each["cycles"] * each["pes"] / each["macs"]

    def told(what: str, value: float, bound: float, most: bool, words: str) -> tuple[str, str, str]:
        return what, words, "yes" if (value <= bound if most else value >= bound) else "no"

    listed = []
    for k in (64, 256, 768):
        used, theirs = utilisation(engine, k), swifttron(k)
        listed.append(
            told(
                f"multipliers in use at K = {k}, at least 90 %",
                used,
                0.9,
                False,
                f"{used:.1%} (SwiftTron {theirs:.0%})",
            )
        )
    prefills = [each for each in rows if each["phase"] == "prefill" and each["model"] != "bert-base"]
    prefills += [row(case, wide, technology) for case in CASES if (case.model, case.phase) == ("llama-3-8b", "prefill")]
    for each in prefills:
        value, size = ratio(each), each["sram_bytes"] >> 20
        what = f"cycles by MACs/PEs, {each['model']} at {each['sequence']} in {size} MiB, at most 1.15"
        listed.append(told(what, value, 1.15, True, f"{value:.3f}"))
    for sequence in (128, 256):
        value = (
            found["roberta-large", "prefill", sequence]["cycles"] / found["roberta-base", "prefill", sequence]["cycles"]
        )
        listed.append(
            told(f"large by base at {sequence}, at most 3.7", value, 3.7, True, f"{value:.2f} (SwiftTron 25.0)")
        )
    value = found["deit-s", "prefill", 197]["cycles"] / found["roberta-base", "prefill", 256]["cycles"]
    listed.append(told("DeiT-S by base at 256, at most 0.23", value, 0.23, True, f"{value:.3f} (SwiftTron 0.62)"))
    for model, sequence in (("llama-3-8b", 1024), ("tinyllama-1.1b", 704)):
        each = found[model, "decode", sequence]
        value = each["compulsory_bytes"] / (each["cycles"] * engine.bus_bytes)
        listed.append(
            told(
                f"decode of {model} at {sequence}: memory port in use, at least 90 %", value, 0.9, False, f"{value:.1%}"
            )
        )
    return listed


def main() -> None:
    engine, technology = ENGINES.load("large"), TECHNOLOGIES.load("sg13g2")
    rows = []
    for case in CASES:
        rows.append(row(case, engine, technology))
        print(f"{case.model} {case.phase} {case.sequence}: {rows[-1]['cycles']:,}", flush=True)
    met = targets(rows, engine, technology)
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "accelerator_cycles.json", {"engine": engine.model_dump(), "technology":
    technology.model_dump(),
                                                     "gpu": GPU, "rows": rows, "targets": met})  # fmt: skip
    write_text(RESULTS / "accelerator_cycles.md", _table(rows, technology.clock_mhz))
    lines = [f"`{COMMAND}`, engine `large`.", "", "| target | figure | met |", "|---|---|---|"]
    write_text(
        RESULTS / "accelerator_targets.md", "\n".join([*lines, *(f"| {a} | {b} | {c} |" for a, b, c in met)]) + "\n"
    )


def _table(rows: list[dict[str, Any]], clock: float) -> str:
    head = "model | phase | sequence | GMAC | cycles | in use | latency | energy | memory | GPU, at least"
    lines = [f"`{COMMAND}`, engine `large` (4,096 multipliers) at {clock:g} MHz; models, not measured on silicon.", ""]
    lines += [f"| {head} | SwiftTron, published |", "|---|---|" + "---:|" * 9]
    for each in rows:
        published = each["swifttron_published_ms"]
        cells = [
            f"{each['model']}, {each['layers']} blocks",
            each["phase"],
            each["sequence"],
            f"{each['macs'] / 1e9:.2f}",
            f"{each['cycles']:,}",
            f"{each['utilisation_percent']:.1f} %",
            f"{each['latency_ms']:.2f} ms",
            f"{each['energy_mj']:.1f} mJ",
            f"{each['sram_bytes'] / 2**20:.0f} MiB",
            f"{each['gpu_roofline_ms']:.3f} ms",
            "" if published is None else f"{published} ms",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
