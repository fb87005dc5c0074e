"""What the sides of the engines' contest share: the task as read, the timing, the result as written.

Runs in the environment of every side, so it needs nothing but the standard library. A side is a script that is called
with a folder with `task.json`; it prints one line of JSON.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """Read `prompt` (token ids), then write `new` tokens; `repetitions` times, on so many `threads`.

    `side` is the way to run it, `bits` are the weights'. `dense` is a checkpoint with 16 bits, `packed` the same on its
    grid, `gguf` and `openvino` are exports of that.
    """

    side: str
    bits: int
    threads: int
    prompt: list[int]
    new: int
    repetitions: int
    dense: str
    packed: str
    gguf: str
    openvino: str

    @classmethod
    def read(cls) -> "Task":
        """The task in the folder that the command line names."""
        return cls(**json.loads((Path(sys.argv[1]) / "task.json").read_text()))


def peak_memory() -> int:
    """The highest resident memory since this program was started; `getrusage` would count what started it too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def contest(task: Task, read: Callable[[list[int]], int], step: Callable[[int], int], **more: Any) -> None:
    """Times a way to run a model and prints the medians. `read` starts anew with a prompt, `step` reads one token; both
    return the likeliest next one."""
    prefill, decode, tokens = [], [], []
    for _ in range(task.repetitions + 1):
        start = time.perf_counter()
        token = read(task.prompt)
        middle = time.perf_counter()
        tokens = [token]
        for _ in range(task.new):
            tokens.append(step(tokens[-1]))
        end = time.perf_counter()
        prefill.append(middle - start)
        decode.append((end - middle) / task.new)
    found = {
        "prefill_tokens_per_s": len(task.prompt) / statistics.median(prefill[1:]),  # the first one warms up
        "decode_tokens_per_s": 1 / statistics.median(decode[1:]),
        "peak_memory_bytes": peak_memory(),
        "tokens": tokens[:16],
        **more,
    }
    print(json.dumps(found))
