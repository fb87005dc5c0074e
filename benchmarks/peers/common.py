"""What the sides of the peers' contest share: the task as read, the measured call, the result as written.

Runs in the environment of every side, so it needs nothing but torch and safetensors.

A side is a script that is called with a folder. It reads `task.json` and `calibration.json` there, and writes
`weights.safetensors` (dense values of all that it may have changed), `stored/` (its checkpoint, in its own format) and
one line of JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


@dataclass(frozen=True)
class Task:
    """What a side is asked for.

    `bits` for each weight, on average where it is no whole number; `samples` are windows of token ids, `batch` of them
    at a time; `iterations` are for sides that learn roundings, `stored_bytes` is a limit for those that search.
    """

    folder: Path
    model: str
    side: str
    bits: float
    group: int
    batch: int
    iterations: int
    stored_bytes: int | None
    threads: int
    samples: list[list[int]] = field(repr=False)

    @classmethod
    def read(cls) -> "Task":
        """The task in the folder that the command line names."""
        folder = Path(sys.argv[1])
        samples = json.loads((folder / "calibration.json").read_text())
        task = cls(folder, samples=samples, **json.loads((folder / "task.json").read_text()))
        torch.set_num_threads(task.threads)
        return task

    @property
    def stored(self) -> Path:
        """Where the side's own checkpoint goes."""
        return self.folder / "stored"


def measured(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `call` returns; its seconds, its CPU seconds, and the peak memory of the process up to its end."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    found = call()
    figures = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
    return found, {**figures, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The highest resident memory of this process. (`getrusage` also counts what ran before `exec`.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def finish(task: Task, state: dict[str, torch.Tensor], figures: dict[str, float], note: str, *packages: str) -> None:
    """Writes the dense weights and the line of JSON. `state` is the model's; embeddings and head are left out."""
    kept = {
        name: value.detach().float().contiguous()
        for name, value in state.items()
        if "embed_tokens" not in name and "lm_head" not in name
    }
    save_file(kept, task.folder / "weights.safetensors")
    versions = {package: version(package) for package in ("torch", *packages)}
    stored = block_bytes(task.stored)
    print("\n" + json.dumps({**figures, "stored_bytes": stored, "note": note, "versions": versions}))


def block_bytes(folder: Path) -> int:
    """Bytes of all tensors of the blocks' linear layers in a checkpoint; floating ones count as 16 bits.

    The model is run in float32 here, so some tools store their scales so; in use they would be 16 bits.
    """
    total = 0
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no mapping
                if "_proj." in name:
                    tensor = tensors.get_tensor(name)
                    total += tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
    return total


def model_and_tokenizer(task: Task) -> tuple[Any, Any]:
    """The float32 model and its tokenizer, as transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(task.model)
