"""What speculative decoding gives: how often drafts are taken, and how fast decoding is beside plain decoding.

Run: python benchmarks/speculation.py [MODEL ...]
MODEL: tiny-lm, tiny-vlm, SmolLM2-135M where it is at hand: in transformers' code, or "tiny-lm, native" and so on in the
native engine. Default: all.
Writes benchmarks/results/speculation.json and speculation.md, in which rows of other models stay.

Acceptance is computed, not counted: on texts that plain decoding wrote, at every token, from the laws of target and
draft there, for every rule and number of drafts. So all see the same places and only the rule differs. It is that of
transformers' code; the native engine's rows, whose laws are the same to rounding, are of speed alone. Speed is the
time of plain decoding by that of a way to speculate, from the prompt to the end of the answer, both in turn for each
prompt; the median over prompts and quartiles. Both write by the same law, which tests show.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer.core.files import write_json, write_text
from gossamer.core.outcome import Measure
from gossamer.data.text import read_text
from gossamer.data.vqa import read_vqa
from gossamer.engine.decode import Request, StepperOf, decode
from gossamer.engine.sampling import Sampler, Sampling
from gossamer.engine.stepping import Inputs, Stepper
from gossamer.evaluate.intervals import bootstrap_ratio
from gossamer.evaluate.meters import clock_of, in_turn
from gossamer.evaluate.prompts import prompt_inputs
from gossamer.operate.speculate.decode import Speculation, Statistics
from gossamer.operate.speculate.draft_model import DraftModel, text_of
from gossamer.operate.speculate.lookup import PromptLookup
from gossamer.operate.speculate.self_draft import SelfDraft, first_blocks
from gossamer.operate.speculate.verify import RULES
from gossamer.operate.writer import Engine, Writer, open_writer
from gossamer.search.jobs import apply_job
from gossamer.search.outcome import environment
from models import CACHE, smollm2

RESULTS = Path(__file__).parent / "results"
PROMPT_TOKENS = 48
COUNTS = (1, 2, 3, 4)
"""Numbers of drafts; with one all rules are the same."""
SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Contest:
    """A target with its drafts. `stepper_of` reads the target's tokens; `drafts`: name → the model, its prompts, and
    what reads its tokens."""

    name: str
    target: Any
    stepper_of: StepperOf
    prompts: list[Inputs]
    drafts: dict[str, tuple[Any, list[Inputs], StepperOf]]
    blocks: tuple[int, ...]
    new_tokens: int
    eos: frozenset[int] | None
    data: str

    def request(self, number: int, sampling: Sampling) -> Request:
        """Of one prompt."""
        return Request(self.prompts[number], sampling, self.new_tokens, eos=self.eos)


def language(
    name: str, target: Writer, drafts: dict[str, Writer], blocks: tuple[int, ...], count: int, new: int
) -> Contest:
    """The beginnings of paragraphs spread over the built-in held-out text, to be continued."""
    tokenizer: Any = target.opened.tokenizer
    (document, *_), _ = read_text("heldout")
    paragraphs = [part for part in document.text.split("\n\n") if len(part) > 400]
    chosen = [paragraphs[at * len(paragraphs) // count] for at in range(count)]
    ids = [tokenizer(text, return_tensors="pt")["input_ids"][:, :PROMPT_TOKENS] for text in chosen]
    prompts: list[Inputs] = [{"input_ids": each} for each in ids]
    data = f"{count} paragraphs of heldout, {PROMPT_TOKENS} tokens continued by {new}"
    models = {label: (draft.opened.model, prompts, draft.stepper_of) for label, draft in drafts.items()}
    return Contest(name, target.opened.model, target.stepper_of, prompts, models, blocks, new, frozenset(), data)


def tiny_lm(engine: Engine) -> Contest:
    """The embedded language model and its draft."""
    target, draft = open_writer("tiny-lm", engine), open_writer("tiny-lm-draft", engine)
    return language(label("tiny-lm", engine), target, {"tiny-lm-draft": draft}, (2, 4), 12, 120)


def tiny_vlm(engine: Engine) -> Contest:
    """The embedded vision-language model and its small sibling, which sees the image too, or the text only."""
    readers, count = [open_writer(name, engine) for name in ("tiny-vlm", "tiny-vlm-small")], 40
    target, small = (each.opened for each in readers)
    examples, _ = read_vqa("scenes", split="test", limit=count)
    seen = [
        [prompt_inputs(each, example.question, [example.image.load()]) for example in examples]
        for each in (target, small)
    ]
    drafts = {
        "tiny-vlm-small": (small.model, seen[1], readers[1].stepper_of),
        "tiny-vlm-small, text only": (
            small.model, [text_of(target.model, inputs) for inputs in seen[0]], readers[1].stepper_of
        ),
    }  # fmt: skip
    data = f"{count} questions about test scenes, answered to the end"
    return Contest(
        label("tiny-vlm", engine), target.model, readers[0].stepper_of, seen[0], drafts, (1, 2), 24, None, data
    )


def smollm(engine: Engine) -> Contest:
    """A real language model, without a draft model."""
    return language(label("SmolLM2-135M", engine), open_writer(str(smollm2()), engine), {}, (8, 16), 4, 64)


def smollm_packed() -> Contest:
    """The same at 4 bits in groups of 32, by the native engine."""
    target = CACHE / "engine" / "smollm2-135m-w4g32"
    if not target.exists():
        apply_job("rtn-w4g32", str(smollm2()), target)
    name = label("SmolLM2-135M at 4 bits", "native")
    return language(name, open_writer(str(target), "native"), {}, (8, 16), 4, 64)


def label(name: str, engine: Engine) -> str:
    """What the tables call a model on an engine."""
    return name if engine == "torch" else f"{name}, {engine}"


def contests() -> dict[str, Callable[[], Contest]]:
    """Name → how to open it. A model that is not at hand is left out and named on standard output."""
    makers: dict[str, Callable[[Engine], Contest]] = {"tiny-lm": tiny_lm, "tiny-vlm": tiny_vlm}
    at_hand = "GOSSAMER_DATA" in os.environ or (CACHE / "smollm2-135m").exists()
    if at_hand:
        makers["SmolLM2-135M"] = smollm
    engines: tuple[Engine, ...] = ("torch", "native")
    found: dict[str, Callable[[], Contest]] = {
        label(name, engine): partial(make, engine) for engine in engines for name, make in makers.items()
    }
    if at_hand:
        return {**found, "SmolLM2-135M at 4 bits, native": smollm_packed}
    print("skipped: SmolLM2-135M needs .cache/models/smollm2-135m (python benchmarks/models.py smollm2)")
    return found


# ------------------------------------------------------------------------------------------------ acceptance


@torch.inference_mode()
def laws_on(model: Any, prompt: Inputs, answer: Sequence[int], sampling: Sampling) -> torch.Tensor:
    """The laws (tokens, vocabulary) by which a model would draw each token of an answer."""
    stepper = Stepper(model)
    first = stepper.prefill([prompt])
    rest = stepper.extend(torch.tensor([answer[:-1]]))[0] if len(answer) > 1 else first[:0]
    return Sampler(sampling).law(torch.cat([first, rest]))


def acceptances(contest: Contest, temperature: float) -> Iterator[dict[str, Any]]:
    """A row for each draft: the mean acceptance by rule and number of drafts."""
    drafts = {name: (model, prompts) for name, (model, prompts, _) in contest.drafts.items()}
    for blocks in contest.blocks:
        drafts[f"self:{blocks}"] = (first_blocks(contest.target, blocks), contest.prompts)
    sums: dict[str, list[dict[str, float]]] = {name: [] for name in drafts}
    tokens = []
    for number, prompt in enumerate(contest.prompts):
        sampling = Sampling(temperature, seed=number)
        answer = [event.token for event in decode(contest.target, [contest.request(number, sampling)])]
        tokens.append(len(answer))
        p = laws_on(contest.target, prompt, answer, sampling)
        for name, (model, prompts) in drafts.items():
            q = laws_on(model, prompts[number], answer, sampling)
            pairs = list(zip(p, q, strict=True))
            sums[name].append(
                {
                    f"{rule}-{count}": sum(RULES[rule].acceptance(*pair, count) for pair in pairs)
                    for rule in RULES
                    for count in COUNTS
                }
            )
    for name, by_prompt in sums.items():
        found = {
            key: bootstrap_ratio([each[key] for each in by_prompt], tokens, over="prompts").model_dump()
            for key in by_prompt[0]
        }
        never_below = all(
            each[f"kseq-{count}"] >= each[f"recursive-{count}"] - 1e-9 for each in by_prompt for count in COUNTS
        )
        yield {"draft": name, "temperature": temperature, "tokens": sum(tokens), "acceptance": found,
               "kseq_never_below_recursive": never_below}  # fmt: skip


# ----------------------------------------------------------------------------------------------------- speed


def ways(contest: Contest, number: int, sampled: bool) -> dict[str, Speculation]:
    """The ways to speculate on one prompt."""
    found = {"lookup": Speculation(PromptLookup())}
    for blocks in contest.blocks:
        found[f"self:{blocks}"] = Speculation(SelfDraft(blocks))
    for name, (model, prompts, stepper_of) in contest.drafts.items():
        drafter = DraftModel(model, prompts[number], stepper_of)
        found[name] = Speculation(drafter)
        found[f"{name}, always 4"] = Speculation(drafter, 4)
        if sampled:
            for rule in RULES:
                found[f"{name}, 3 drafts, {rule}"] = Speculation(drafter, drafts=3, rule=RULES[rule])
                found[f"{name}, 3 drafts of 4, {rule}"] = Speculation(drafter, 4, drafts=3, rule=RULES[rule])
    return found


def speeds(contest: Contest, temperature: float) -> Iterator[dict[str, Any]]:
    """A row for each way: time of plain decoding by its own, and what came of its drafts."""
    ratios: dict[str, list[float]] = {}
    counted: dict[str, list[Statistics]] = {}
    for number in (0, *range(len(contest.prompts))):  # the first once more: it warms up
        request = contest.request(number, Sampling(temperature, seed=number))
        found = ways(contest, number, temperature > 0)
        start = time.perf_counter()
        plain = sum(1 for _ in decode(contest.target, [request], stepper_of=contest.stepper_of))
        pace = (time.perf_counter() - start) / plain
        for name, way in found.items():
            count = Statistics()
            start = time.perf_counter()
            tokens = sum(1 for _ in way.decode(contest.target, request, None, count, contest.stepper_of))
            ratios.setdefault(name, []).append(pace / ((time.perf_counter() - start) / tokens))
            counted.setdefault(name, []).append(count)
    for name, each in ratios.items():
        total = {
            key: sum(getattr(count, key) for count in counted[name][1:])
            for key in ("passes", "plain", "drafted", "judged", "accepted", "recovered", "bonus")
        }
        low, middle, high = (float(value) for value in np.quantile(each[1:], (0.25, 0.5, 0.75)))
        speed = Measure(value=middle, low=low, high=high, n=len(each) - 1, method="median and quartiles over prompts")
        off = sum(bool(count.off) for count in counted[name][1:])
        yield {"way": name, "temperature": temperature, "speed": speed.model_dump(), **total, "off_at_the_end": off}


def verify_costs(contest: Contest) -> dict[str, float]:
    """Time of a pass over M tokens by that of a pass over one: the v(M) that decides what pays."""
    with torch.inference_mode():
        stepper = contest.stepper_of(contest.target)
        stepper.prefill([contest.prompts[0]])

        def run(size: int) -> None:
            stepper.extend(torch.full((1, size), 5))
            stepper.rewind(size)

        times = np.median(in_turn([clock_of(lambda size=size: run(size)) for size in SIZES], 15, 3), axis=1)
    return {str(size): float(each / times[0]) for size, each in zip(SIZES, times, strict=True)}


# ---------------------------------------------------------------------------------------------------- tables


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "Acceptance: the mean probability that one of the drafts is taken, on texts of plain decoding.",
        "",
        "| target | draft | temperature | tokens | one draft | "
        + " | ".join(f"{rule} {count}" for count in COUNTS[1:] for rule in RULES)
        + " |",
        "|---" * (5 + len(RULES) * (len(COUNTS) - 1)) + "|",
    ]
    for row in rows:
        for each in row["acceptance"]:
            shares = [each["acceptance"]["kseq-1"]["value"]]
            shares += [each["acceptance"][f"{rule}-{count}"]["value"] for count in COUNTS[1:] for rule in RULES]
            cells = [row["model"], each["draft"], each["temperature"], each["tokens"], *(f"{s:.3f}" for s in shares)]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "Speed: time of plain decoding by time with drafts, median over prompts [quartiles]; above 1 is faster. "
        "Without a number of tokens the engine chooses it, and stops drafting where that does not pay.",
        "",
        "| target | drafts | temperature | speed | tokens a pass | accepted of judged | without drafts at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for each in row["speeds"]:
            speed, passes = each["speed"], max(1, each["passes"])
            accepted = f"{each['accepted'] / each['judged']:.2f}" if each["judged"] else "–"
            lines.append(
                f"| {row['model']} | {each['way']} | {each['temperature']} | {speed['value']:.2f} [{speed['low']:.2f}, "
                f"{speed['high']:.2f}] | {(each['accepted'] + passes) / passes:.2f} | {accepted} | "
                f"{each['off_at_the_end']} of {speed['n']} |"
            )
    lines += [
        "",
        "A pass over M tokens by one over a single token:",
        "",
        "| target | " + " | ".join(map(str, SIZES)) + " |",
    ]
    lines.append("|---" * (1 + len(SIZES)) + "|")
    lines += [f"| {row['model']} | " + " | ".join(f"{v:.2f}" for v in row["verify"].values()) + " |" for row in rows]
    lines += ["", "Data: " + "; ".join(f"{row['model']}: {row['data']}" for row in rows) + ". Threads: 1."]
    return "\n".join(lines)


def main() -> None:
    """Runs all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="as the tables call them; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = contests()
    file = RESULTS / "speculation.json"
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    command = "python benchmarks/speculation.py"
    for name in arguments.models or known:
        contest = known[name]()
        row = {
            "model": name,
            "data": contest.data,
            "verify": verify_costs(contest),
            "acceptance": [
                each
                for temperature in (0.7, 1.0)
                if not name.endswith("native")
                for each in acceptances(contest, temperature)
            ],
            "speeds": [each for temperature in (0.0, 1.0) for each in speeds(contest, temperature)],
        }
        kept = [other for other in kept if other["model"] != name] + [row]
        write_json(file, {"command": command, "environment": environment(), "rows": kept})
        write_text(RESULTS / "speculation.md", f"`{command}`\n\n{table(kept)}\n")
    print((RESULTS / "speculation.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
