"""Table I: published transformers on the engine by the cycle model, a GPU's roofline and SwiftTron's figures beside it.

Cycles are the cycle model's (equal to the RTL's counters wherever both ran), of all blocks (see `whole`). Nothing here
is measured on silicon or on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gossamer.accelerator.shapes import SHAPES, Shape
from gossamer.accelerator.whole import Phase, Whole, macs, whole
from gossamer.core.errors import SettingError
from gossamer.core.progress import SILENT, Progress
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.technology import Technology


@dataclass(frozen=True)
class Case:
    """A row: `phase` prefill (of `sequence` tokens or patches at once) or decode (one token after `sequence` − 1)."""

    model: str
    phase: Phase
    sequence: int
    layers: int = 0
    """Blocks that are run; 0: all."""
    swifttron_ms: float | None = None


CASES = (
    Case("roberta-base", "prefill", 128), Case("roberta-base", "prefill", 256, swifttron_ms=1.83),
    Case("roberta-large", "prefill", 128), Case("roberta-large", "prefill", 256, swifttron_ms=45.70),
    Case("deit-s", "prefill", 197, swifttron_ms=1.13), Case("bert-base", "prefill", 128),
    Case("llama-3-8b", "prefill", 128, layers=1), Case("llama-3-8b", "decode", 1024, layers=1),
    Case("clip-l-336", "prefill", 577), Case("tinyllama-1.1b", "prefill", 640), Case("tinyllama-1.1b", "decode", 704),
)  # fmt: skip
"""SwiftTron's latencies (arXiv 2304.03986) are given without a sequence length; they stand at 256 for text."""

GPU = {"name": "RTX 2080 Ti", "flops": 53.8e12, "bytes_per_s": 616e9, "watts": 250.0}
"""Its data sheet: FP16 tensor operations with FP32 sums, memory bandwidth, board power."""


def table1(
    engine: IntegerEngine, technology: Technology, cases: Sequence[Case] = CASES, progress: Progress = SILENT
) -> list[dict[str, Any]]:
    """A row for each case. A model that does not fit the unified memory gets one of more lines, and the row says so."""
    rows = []
    for case in cases:
        progress.say(f"{case.model}, {case.phase} of {case.sequence}")
        rows.append(row(case, engine, technology))
    return rows


def row(case: Case, engine: IntegerEngine, technology: Technology) -> dict[str, Any]:
    """One case on the smallest unified memory, from the engine's on, that takes it."""
    shape = SHAPES[case.model]
    layers = case.layers or shape.layers
    found = _fitted(case, shape, engine, technology)
    cycles, energy, used = found.cycles, found.energy_mj, found.engine
    operations = macs(shape, case.phase, case.sequence, layers)
    return {
        "model": case.model,
        "phase": case.phase,
        "sequence": case.sequence,
        "layers": layers,
        "macs": operations,
        "pes": used.multipliers,
        "sram_bytes": used.sram_bytes,
        "cycles": cycles,
        "utilisation_percent": 100 * operations / (cycles * used.multipliers),
        "latency_ms": cycles / technology.clock_mhz / 1e3,
        "energy_mj": sum(energy.values()),
        "energy_parts_mj": energy,
        "compulsory_bytes": layers * _compulsory(case, shape, 1),
        "gpu_roofline_ms": _roofline_ms(case, shape, layers),
        "swifttron_published_ms": case.swifttron_ms,
    }


def _fitted(case: Case, shape: Shape, engine: IntegerEngine, technology: Technology) -> Whole:
    while True:
        try:
            return whole(shape, case.phase, case.sequence, engine, technology, case.layers)
        except SettingError:
            if engine.bank_lines >= 1 << 17:
                raise
            engine = engine.model_copy(update={"bank_lines": 2 * engine.bank_lines})


def _roofline_ms(case: Case, shape: Shape, layers: int) -> float:
    """The least time on `GPU` at 16 bits: operations or bytes of weights and cache at the peaks, the longer."""
    operations = macs(shape, case.phase, case.sequence, 1)
    seconds = max(2 * operations / GPU["flops"], _compulsory(case, shape, 2) / GPU["bytes_per_s"])  # type: ignore[operator]
    return layers * seconds * 1e3


def _compulsory(case: Case, shape: Shape, width: int) -> int:
    """Bytes of a block's weights, and in decode of its cache, in numbers of `width` bytes: read once at least."""
    weights = shape.macs(1) - 2 * shape.heads * shape.head
    cache = 2 * shape.kv_heads * shape.head * case.sequence if case.phase == "decode" else 0
    return width * (weights + cache)
