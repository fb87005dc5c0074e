"""What leaving early gives: the calibrated threshold, whether its bound holds on unseen examples, and how fast it is.

Run: python benchmarks/early_exit.py [MODEL ...]   (default: tiny-lm, tiny-vlm, and SmolLM2-135M where it is at hand)
Writes benchmarks/results/early_exit.json and early_exit.md, in which rows of other models stay.

For each share of tokens that may differ: the cheapest way that calibration found, on `validation` (texts in windows of
64 tokens) or scenes of the split `val`; how many tokens leave and differ on `heldout` or test scenes, which calibration
never saw, with a bootstrap over examples; and the time of plain decoding by that of leaving in this way, on the native
engine with one thread: the median over prompts and quartiles. It is timed where it does not pay too.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer.core.files import write_json, write_text
from gossamer.core.outcome import Measure
from gossamer.engine.decode import Request, decode
from gossamer.evaluate.intervals import bootstrap_ratio
from gossamer.evaluate.task import Task, forward
from gossamer.evaluate.tasks import open_task
from gossamer.models.open import open_model
from gossamer.operate.early_exit.calibrate import calibrate, fewest
from gossamer.operate.early_exit.decode import EarlyExit, margins
from gossamer.operate.early_exit.wish import CONTEXT, SPARE
from gossamer.operate.speculate.self_draft import first_blocks
from gossamer.search.outcome import environment
from models import smollm2
from speculation import Contest, contests

RESULTS = Path(__file__).parent / "results"
RISKS = (0.02, 0.1, 0.3)
UNSEEN = 200


def examples(opened: Any, vision: bool, unseen: bool, count: int) -> Task:
    """What is calibrated on, or what is not."""
    if vision:
        return open_task("vqa", "scenes", opened, split="test" if unseen else "val", limit=count)
    return open_task("text", "heldout" if unseen else "validation", opened, limit=count, context=CONTEXT)


@torch.inference_mode()
def observed(model: Any, task: Task, way: EarlyExit) -> dict[str, Any]:
    """The shares of tokens that leave, and that differ for it."""
    shorter = first_blocks(model, way.blocks)
    sums = np.zeros((len(task), 3))
    for batch in task.batches(8):
        whole, first = (task.log_probs(forward(each, batch, use_cache=False), batch) for each in (model, shorter))
        leaves = margins(first) >= way.threshold
        differs = leaves & (first.argmax(-1) != whole.argmax(-1))
        rows = torch.stack([leaves, differs, torch.ones_like(leaves)], 1).double().numpy()
        np.add.at(sums, task.owners(batch).numpy(), rows)
    return {
        name: bootstrap_ratio(sums[:, at], sums[:, 2], over="examples").model_dump()
        for at, name in enumerate(("early", "differ"))
    }


def speed(contest: Contest, way: EarlyExit) -> dict[str, Any]:
    """The time of plain decoding by that of leaving, for a token."""
    ratios = []
    for number in (0, *range(len(contest.prompts))):  # the first once more: it warms up
        request = Request(contest.prompts[number], max_new_tokens=contest.new_tokens, eos=contest.eos)
        paces = []
        for coming in (
            decode(contest.target, [request], stepper_of=contest.stepper_of),
            way.decode(contest.target, request, stepper_of=contest.stepper_of),
        ):
            start = time.perf_counter()
            tokens = sum(1 for _ in coming)
            paces.append((time.perf_counter() - start) / tokens)
        ratios.append(paces[0] / paces[1])
    low, middle, high = (float(value) for value in np.quantile(ratios[1:], (0.25, 0.5, 0.75)))
    count = len(ratios) - 1
    return Measure(value=middle, low=low, high=high, n=count, method="median and quartiles over prompts").model_dump()


def rows_of(name: str, contest: Contest, source: str) -> list[dict[str, Any]]:
    """A row for each share."""
    opened, vision, rows = open_model(source), name == "tiny-vlm", []
    for risk in RISKS:
        found = calibrate(opened.model, examples(opened, vision, False, SPARE * fewest(risk)), risk)
        row = {"model": name, **found.described()}
        if found.way is not None:
            row |= observed(opened.model, examples(opened, vision, True, UNSEEN), found.way)
            row["speed"] = speed(contest, found.way)
        rows.append(row)
        print(row, flush=True)
    return rows


def table(rows: list[dict[str, Any]], command: str) -> str:
    """Markdown."""
    lines = [
        f"`{command}`",
        "",
        "| model | may differ | way | leave, unseen | differ, unseen | cost in blocks | speed, native |",
        "|---|---:|---|---|---|---:|---|",
    ]
    for row in rows:
        start = f"| {row['model']} | {row['risk']:.0%} |"
        if row["way"] is None:
            lines.append(f"{start} none is safe | | | | |")
            continue
        shares = (
            f"{row[key]['value']:.1%} [{row[key]['low']:.1%}, {row[key]['high']:.1%}]" for key in ("early", "differ")
        )
        fast = f"{row['speed']['value']:.2f} [{row['speed']['low']:.2f}, {row['speed']['high']:.2f}]"
        way = f"{row['way']['blocks']}:{row['way']['threshold']}"
        lines.append(f"{start} {way} | {' | '.join(shares)} | {row['cost']:.2f} | {fast} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Runs all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="tiny-lm, tiny-vlm, SmolLM2-135M; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = {name.removesuffix(", native"): make for name, make in contests().items() if name.endswith(", native")}
    file, command = RESULTS / "early_exit.json", "python benchmarks/early_exit.py"
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    for name in arguments.models or [name for name in known if "bits" not in name]:
        contest = known[name]()
        rows = rows_of(name, contest, name if name.startswith("tiny") else str(smollm2()))
        kept = [row for row in kept if row["model"] != name] + rows
        write_json(file, {"command": command, "environment": environment(), "rows": kept})
        write_text(RESULTS / "early_exit.md", table(kept, command))
    print(table(kept, command))


if __name__ == "__main__":
    main()
