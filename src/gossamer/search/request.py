"""What the user asks of `optimize`, and how much work each effort spends."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from gossamer.core.budget import Budget
from gossamer.core.device import DEVICES
from gossamer.core.errors import BudgetError

Effort = Literal["quick", "standard", "thorough"]
Technique = Literal["gptq", "gptaq", "qronos", "signround"]
Search = Literal["exact", "evolution", "tiered"]
Transform = Literal["none", "rotate", "smoothquant", "awq"]
Runtime = Literal["transformers", "vllm", "llama.cpp", "openvino"]


@dataclass(frozen=True)
class OptimizeRequest:
    """One job.

    `weight_bytes` or `ratio` (share of the 16-bit size) bound the exported checkpoint's tensors; `peak_memory_bytes`,
    `latency_ms` and `energy_mj` what one inference step takes by estimate, after `context` tokens, the last two on
    `device` (a preset or a YAML file). `max_loss_percent` is the quality floor; with a floor alone, the smallest model
    that meets it is sought. `task`, `data` default to what the model declares; `test_data` to a part of `data` that the
    search never sees. `transform` changes the model first, without changing its function; `technique` carries the plan
    out; `search` finds it, and others than `exact` are compared with that; `runtime` is what must run it. `on` is what
    the search itself computes on, `cpu` or `cuda`; `ray` the address of a cluster that
    measures candidates. `command` is the command line that the report names.
    """

    model: str
    out: Path
    task: str | None = None
    data: str | None = None
    test_data: str | None = None
    weight_bytes: int | None = None
    ratio: float | None = None
    peak_memory_bytes: int | None = None
    latency_ms: float | None = None
    energy_mj: float | None = None
    device: str | None = None
    context: int | None = None
    max_loss_percent: float | None = None
    seed: int = 0
    granularity: Literal["auto", "layer", "block"] = "auto"
    effort: Effort = "standard"
    technique: Technique = "qronos"
    search: Search = "exact"
    runtime: Runtime = "transformers"
    transform: Transform = "none"
    dry_run: bool = False
    on: str = "cpu"
    ray: str | None = None
    command: str = ""

    def budget(self, dense_bytes: int) -> Budget:
        """The budget in bytes. Raises `BudgetError` if none is stated, two are, or it is absurd."""
        if self.weight_bytes is not None and self.ratio is not None:
            raise BudgetError("give either --memory or --ratio, not both: they state the same limit")
        estimated = {"--peak-memory": self.peak_memory_bytes, "--latency": self.latency_ms, "--energy": self.energy_mj}
        if all(limit is None for limit in (self.weight_bytes, self.ratio, self.max_loss_percent, *estimated.values())):
            raise BudgetError(
                "no budget: give --memory (such as 3MB), --ratio (such as 0.3), --max-loss (such as 1%), "
                "--peak-memory, --latency or --energy"
            )
        if self.device is None and (self.latency_ms is not None or self.energy_mj is not None):
            raise BudgetError(
                f"--latency and --energy are estimated on a device: name it by --device, a YAML file or one of "
                f"{', '.join(DEVICES.names)}"
            )
        for name, limit in estimated.items():
            if limit is not None and not (limit > 0 and isfinite(limit)):
                raise BudgetError(f"{name} {limit} is not possible: give a positive number")
        if self.context is not None and self.context < 1:
            raise BudgetError(f"a context of {self.context} tokens is not possible: give a positive number")
        if self.weight_bytes is not None and self.weight_bytes <= 0:
            raise BudgetError(f"a memory budget of {self.weight_bytes} bytes is not possible: give a positive size")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise BudgetError(f"ratio {self.ratio} is out of range: it is a share of the 16-bit size, up to 1")
        size = self.weight_bytes if self.ratio is None else int(self.ratio * dense_bytes)
        return Budget(
            weight_bytes=size,
            peak_memory_bytes=self.peak_memory_bytes,
            latency_ms=self.latency_ms,
            energy_mj=self.energy_mj,
            max_loss_percent=self.max_loss_percent,
        )


@dataclass(frozen=True)
class Sizes:
    """How many examples each part of the search reads, and how many rounds of refinement it makes.

    `calibrate`: Hessians; `measure`: sensitivity; `select` and `confirm`: refinement chooses on one and confirms on the
    other; `guard`: the never-worse comparison; `test`: the final figures; `proposals`: whole plans that are compared.
    """

    calibrate: int
    measure: int
    select: int
    confirm: int
    guard: int
    test: int
    rounds: int
    proposals: int


SIZES: dict[str, dict[Effort, Sizes]] = {
    "text": {
        "quick": Sizes(24, 4, 6, 6, 12, 64, 1, 12),
        "standard": Sizes(64, 8, 12, 12, 24, 256, 2, 24),
        "thorough": Sizes(128, 16, 24, 24, 48, 4096, 4, 64),
    },
    "vqa": {
        "quick": Sizes(96, 256, 768, 768, 1024, 1000, 1, 12),
        "standard": Sizes(256, 512, 1536, 1536, 2048, 2000, 2, 24),
        "thorough": Sizes(512, 2048, 4096, 4096, 4096, 10000, 4, 64),
    },
    "other": {
        "quick": Sizes(96, 48, 96, 96, 256, 1000, 1, 12),
        "standard": Sizes(256, 96, 192, 192, 512, 2000, 2, 24),
        "thorough": Sizes(512, 256, 512, 512, 1024, 10000, 4, 64),
    },
}
"""Examples by task (windows of 512 tokens; questions, of which many share a picture; pictures elsewhere) and effort."""


def sizes_for(task: str, effort: Effort) -> Sizes:
    """The sizes of a task at an effort."""
    return SIZES.get(task, SIZES["other"])[effort]
