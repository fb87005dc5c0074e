"""One model as `gossamer generate` runs it: a prompt is read and answered several times in a process of its own.

Called with a folder with `task.json`: `ref`, `engine`, `image` (whether a picture is asked about), `new` tokens,
`repetitions` and `threads`. Prints one line of JSON: the medians, without the first answer, and the peak of memory.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from task import peak_memory

from gossamer.engine.decode import Request, decode
from gossamer.evaluate.prompts import prompt_inputs
from gossamer.operate.writer import open_writer

TEXT_TOKENS = 128


def prompt_of(opened: Any, image: bool) -> Any:
    """What is read: the beginning of a text, or a question about a scene."""
    if not image:
        from gossamer.data.text import read_text

        (document, *_), _ = read_text("heldout")
        return {"input_ids": opened.tokenizer(document.text, return_tensors="pt")["input_ids"][:, :TEXT_TOKENS]}
    from gossamer.data.vqa import read_vqa

    (example, *_), _ = read_vqa("scenes", split="test", limit=1)
    return prompt_inputs(opened, example.question, [example.image.load()])


def main() -> None:
    """Runs one side."""
    task = json.loads((Path(sys.argv[1]) / "task.json").read_text())
    torch.set_num_threads(task["threads"])
    writer = open_writer(task["ref"], task["engine"])
    opened = writer.opened
    inputs = prompt_of(opened, task["image"])
    firsts, paces = [], []
    with writer.torch_threads():
        for _ in range(task["repetitions"] + 1):
            request = Request(inputs, max_new_tokens=task["new"], eos=frozenset())
            start = time.perf_counter()
            times = [
                time.perf_counter() - start
                for _ in decode(opened.model, [request], opened.tokenizer, writer.stepper_of)
            ]
            firsts.append(times[0])
            paces.append((times[-1] - times[0]) / (len(times) - 1))
    found = {
        "first_token_ms": 1000 * statistics.median(firsts[1:]),
        "tokens_per_s": 1 / statistics.median(paces[1:]),
        "peak_memory_bytes": peak_memory(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
