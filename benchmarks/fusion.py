"""What each fusion of the native engine saves: time of a token without it by time with all of them.

Run: python benchmarks/fusion.py [MODEL] [--threads N] [--rounds 15]
MODEL: any that the engine runs (default: tiny-lm at its 16 bits). Writes benchmarks/results/fusion.json and fusion.md.

All programs share one engine and take turns, round by round; a ratio is the median of the rounds' ratios with a 95 %
interval. Fusions that have no program without them (activation and product, residual, rotation with the write into the
cache) are not in the table.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from gossamer.core.files import write_json, write_text
from gossamer.engine.native.library import Engine
from gossamer.engine.native.lower import FUSIONS, lower
from gossamer.engine.native.stepper import NativeStepper
from gossamer.evaluate.intervals import median_ratio
from gossamer.models.open import open_packed

RESULTS = Path(__file__).resolve().parent / "results"
PROMPT, NEW = 64, 32


def main() -> None:
    """Runs the contest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny-lm")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = open_packed(options.model).model
    engine = Engine(options.threads)
    whole = lower(model)
    sides = {"all": FUSIONS, **{f"without {name}": FUSIONS - {name} for name in sorted(FUSIONS)}, "none": frozenset()}
    steppers = {
        name: NativeStepper(lower(model, fusions=fusions, known=whole.weights), model, engine)
        for name, fusions in sides.items()
    }
    prompt = {"input_ids": torch.arange(5, 5 + PROMPT)[None]}
    logits = {name: stepper.prefill([prompt]) for name, stepper in steppers.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds + 2):
        for name, stepper in steppers.items():
            stepper.prefill([prompt])
            start = time.perf_counter()
            for token in range(NEW):
                stepper.step([token], [True])
            times[name].append(1000 * (time.perf_counter() - start) / NEW)
    rows = []
    for name in list(sides)[1:]:
        ratio = median_ratio(np.array(times["all"][2:]), np.array(times[name][2:]))
        gap = float((logits[name] - logits["all"]).abs().max() / logits["all"].abs().max())
        rows.append({"fusions": name, "time_ratio": ratio.model_dump(), "logit_difference": gap})
    shown = Path(options.model).name
    command = f"python benchmarks/fusion.py {shown} --threads {options.threads} --rounds {options.rounds}"
    write_json(RESULTS / "fusion.json", {"command": command, "isa": engine.isa, "rows": rows})
    lines = [
        f"`{command}`, on {engine.isa}; a token after {PROMPT} of context.",
        "",
        "| fusions | time by that with all [95 %] | largest difference of logits, of the largest |",
        "|---|---:|---:|",
    ]
    for row in rows:
        ratio = row["time_ratio"]
        interval = f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        lines.append(f"| {row['fusions']} | {interval} | {row['logit_difference']:.1e} |")
    write_text(RESULTS / "fusion.md", "\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
