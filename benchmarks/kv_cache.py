"""How much of the cache of keys and values can be spared at what loss: every policy against budget and bits.

Run: python benchmarks/kv_cache.py [MODEL ...]   (default: tiny-lm, tiny-vlm, and smollm2-135m where it is at hand)
Writes benchmarks/results/kv_cache.json and kv_cache.md.

Text: the loss of a continuation after a long prompt, read token by token in small pieces, so that evictions happen on
the way as in decoding. Dialogues: questions about one scene, one after another, each with the right answer to those
before it (the model was trained on single questions; a policy that picks by one question cannot know the next); the
share of questions after the first that are answered right. Far: loss per token up to four times the model's context,
with sinks and a window that closes up, against the whole cache at positions that the model has never seen. Differences
to the whole cache are paired over windows or dialogues. Bytes are all that is held at the end, sums and stored queries
of the policies among them. `chance` evicts at random: what does not beat it is not worth its cost.
"""

import argparse
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.core.files import write_json, write_text
from gossamer.data.text import read_text
from gossamer.data.vqa import VqaExample, read_vqa
from gossamer.engine.stepping import Stepper
from gossamer.evaluate.intervals import bootstrap_mean, paired_mean
from gossamer.evaluate.prompts import answer_ids, prompt_inputs
from gossamer.models.open import open_model
from gossamer.operate.cache import KeyValues
from gossamer.search.outcome import environment
from models import CACHE

RESULTS = Path(__file__).parent / "results"
PIECE = 8
"""Tokens of a continuation that are read at once."""

POLICIES = {
    "streaming": "sinks=4",
    "h2o": "",
    "scissorhands": "history=400,recent=10",
    "snapkv": "window={window}",
    "snapkv, pyramid": "window={window},pyramid=0.5",
    "chance": "sinks=4,recent=10",
}
TEXT = {"tiny-lm": (192, 64, 40), "smollm2-135m": (512, 64, 6)}
"""Model → tokens of the prompt, of the continuation, and windows."""
TURNS, DIALOGUES = 5, 120
FAR = {"tiny-lm": 6}
"""Model → texts of four times its context."""


def settings(length: int) -> Iterator[tuple[str, int | None, int | None, str]]:
    """What is measured at prompts of about `length` tokens: name, budget, bits and the words for `--kv`."""
    window = 8 if length < 256 else 32
    yield "full", None, None, "full"
    for bits in (8, 4, 2):
        yield "full", None, bits, f"full:bits={bits},residual=16,group=16"
    for share in (2, 4, 8):
        budget = max(16, length // share)
        for name, more in POLICIES.items():
            if name == "snapkv, pyramid" and budget // 2 < window:
                continue
            words = f"{name.split(',')[0]}:budget={budget},block={PIECE},{more.format(window=window)}"
            yield name, budget, None, words.rstrip(",")
    budget = length // 4
    yield "snapkv", budget, 4, f"snapkv:budget={budget},block={PIECE},window={window},bits=4,residual=8,group=16"


def windows(opened: Any, length: int, count: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Pieces of `length` tokens, spread evenly over the built-in held-out text."""
    documents, provenance = read_text("heldout")
    ids = opened.tokenizer("\n".join(str(each.text) for each in documents), return_tensors="pt")["input_ids"][0]
    starts = torch.linspace(0, len(ids) - length, count).long().tolist()
    if count * length > len(ids):
        raise SystemExit(f"the text has {len(ids)} tokens: {count} windows of {length} would overlap")
    return [ids[start : start + length][None] for start in starts], provenance


def loss_after(stepper: Stepper, ids: Tensor, prompt: int) -> float:
    """Mean loss, in nats, of the tokens after the first `prompt`."""
    logits = [stepper.prefill([{"input_ids": ids[:, :prompt]}])]
    logits += [stepper.extend(part)[0] for part in ids[:, prompt:-1].split(PIECE, 1)]
    return float(torch.nn.functional.cross_entropy(torch.cat(logits), ids[0, prompt:]))


def on_text(opened: Any, name: str) -> tuple[Callable[[Stepper, Any], list[float]], list[Any], int, dict[str, Any]]:
    """How a window is scored, the windows, their prompt's length, and the protocol."""
    prompt, after, count = TEXT[name]
    found, provenance = windows(opened, prompt + after, count)
    protocol = {"prompt_tokens": prompt, "continuation_tokens": after, **provenance, "n": count}
    return lambda stepper, ids: [loss_after(stepper, ids, prompt)], found, prompt, protocol


def on_dialogues(opened: Any) -> tuple[Callable[[Stepper, Any], list[float]], list[Any], int, dict[str, Any]]:
    """The same for dialogues about scenes: how each answer after the first is scored."""
    examples, provenance = read_vqa("scenes", limit=3000)
    by_image: dict[str, list[VqaExample]] = {}
    for example in examples:
        by_image.setdefault(example.image.key, []).append(example)
    choose = random.Random(0)
    talks = [choose.sample(talk, TURNS) for talk in by_image.values() if len(talk) >= TURNS][:DIALOGUES]

    def score(stepper: Stepper, talk: list[VqaExample]) -> list[float]:
        inputs = prompt_inputs(opened, talk[0].question, [talk[0].image.load()])
        logits, right = stepper.prefill([inputs]), []
        for turn, example in enumerate(talk):
            answer = answer_ids(opened.tokenizer, example.question, example.answer)
            right.append(float(len(answer) == 1 and int(logits[0].argmax()) == answer[0]))
            if turn + 1 < len(talk):
                next_question = opened.tokenizer(talk[turn + 1].question, add_special_tokens=False)["input_ids"]
                logits = stepper.extend(torch.tensor([[*answer, *next_question]]))[:, -1]
        return right[1:]

    length = prompt_inputs(opened, talks[0][0].question, [talks[0][0].image.load()])["input_ids"].shape[1] + 25
    return score, talks, length, {"turns": TURNS, **provenance, "n": len(talks)}


@torch.inference_mode()
def rows_of(name: str, source: str) -> list[dict[str, Any]]:
    """A row for each setting."""
    opened = open_model(source)
    opened.model.eval().float()
    score, items, length, protocol = on_text(opened, name) if name in TEXT else on_dialogues(opened)
    metric = "loss" if name in TEXT else "accuracy"
    rows: list[dict[str, Any]] = []
    whole: list[float] = []
    whole_bytes = 0.0
    for policy, budget, bits, text in settings(length):
        scores, held = [], []
        for item in items:
            stepper = Stepper(opened.model, None if text == "full" else KeyValues.parse(text))
            found = score(stepper, item)
            scores.append(sum(found) / len(found))
            held.append(stepper.cache_bytes)
        if not rows:
            whole, whole_bytes = scores, sum(held)
        rows.append(
            {
                "model": name,
                "kind": metric,
                "policy": policy,
                "kv": text,
                "budget": budget,
                "bits": bits,
                "length": length,
                "bytes": sum(held) / len(held),
                "share": sum(held) / whole_bytes,
                metric: bootstrap_mean(scores).model_dump(),
                "change": paired_mean(whole, scores).model_dump(),
                "protocol": protocol,
            }
        )
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "protocol"}), flush=True)
    return rows


@torch.inference_mode()
def far_rows(name: str, source: str) -> list[dict[str, Any]]:
    """Loss of the last quarter of texts of four times the context."""
    opened = open_model(source)
    opened.model.eval().float()
    context = opened.config.max_position_embeddings
    texts, provenance = windows(opened, 4 * context, FAR[name])
    budget, rows = 3 * context // 4, []
    close = f"budget={budget},block={PIECE},positions=rerotate"
    cases = {
        "whole, at unseen positions": "full",
        "4 sinks and window, closed up": f"streaming:sinks=4,{close}",
        "window alone, closed up": f"streaming:sinks=0,{close}",
        "4 sinks and window, at true positions": f"streaming:sinks=4,budget={budget},block={PIECE}",
    }
    for case, text in cases.items():
        losses = [loss_after(Stepper(opened.model, KeyValues.parse(text)), ids, 3 * context) for ids in texts]
        fresh = [loss_after(Stepper(opened.model), ids[:, -context:], context // 4) for ids in texts]
        row = {"model": name, "kind": "far", "case": case, "kv": text, "loss": bootstrap_mean(losses).model_dump()}
        row["last_context_alone"] = bootstrap_mean(fresh).model_dump()
        rows.append({**row, "protocol": {"tokens": 4 * context, "scored": context, **provenance, "n": len(texts)}})
        print(json.dumps(row), flush=True)
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: one table for each model, and one for far texts."""
    parts = []
    for name in dict.fromkeys(row["model"] for row in rows if row["kind"] != "far"):
        own = [row for row in rows if row["model"] == name and row["kind"] != "far"]
        metric, protocol = own[0]["kind"], own[0]["protocol"]
        what = (
            f"{protocol['n']} × {protocol['continuation_tokens']} tokens after {protocol['prompt_tokens']}, "
            "nats a token"
            if metric == "loss"
            else f"{protocol['n']} dialogues of {protocol['turns']} questions, answers after the first"
        )
        parts += [f"**{name}**: {what}", "", f"| kept | rows | bits | bytes | {metric} | change [95 %] |"]
        parts.append("|---|---|---|---|---|---|")
        for row in own:
            value, change = row[metric]["value"], row["change"]
            form = (lambda number: f"{number:+.3f}") if metric == "loss" else (lambda number: f"{100 * number:+.1f} pp")
            shown = f"{value:.3f}" if metric == "loss" else f"{100 * value:.1f} %"
            interval = f"{form(change['value'])} [{form(change['low'])}, {form(change['high'])}]"
            parts.append(
                f"| {row['policy']} | {row['budget'] or 'all'} | {row['bits'] or 32} | {row['share']:.1%} | {shown} | "
                f"{interval if row['kv'] != 'full' else '–'} |"
            )
        parts.append("")
    far = [row for row in rows if row["kind"] == "far"]
    for name in dict.fromkeys(row["model"] for row in far):
        own = [row for row in far if row["model"] == name]
        protocol, alone = own[0]["protocol"], own[0]["last_context_alone"]
        parts += [
            f"**{name}, far past its context**: the last {protocol['scored']} of {protocol['tokens']} tokens, "
            f"{protocol['n']} texts, nats a token (the last context read alone, its first quarter as the prompt: "
            f"{alone['value']:.3f})",
            "",
            "| kept | loss [95 %] |",
            "|---|---|",
        ]
        for row in own:
            loss = row["loss"]
            parts.append(f"| {row['case']} | {loss['value']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}] |")
        parts.append("")
    return "\n".join(parts)


def at_hand() -> dict[str, str]:
    """Name → where the model is."""
    found = {"tiny-lm": "tiny-lm", "tiny-vlm": "tiny-vlm"}
    places = [CACHE / "smollm2-135m", Path(os.environ.get("GOSSAMER_DATA", "/nonexistent")) / "smollm2-135m"]
    place = next((place for place in places if (place / "config.json").exists()), None)
    if place is None:
        print("skipped: smollm2-135m is not at hand (python benchmarks/models.py smollm2 fetches it)")
        return found
    return {**found, "smollm2-135m": str(place)}


def main() -> None:
    """Runs all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = at_hand()
    parser.add_argument("models", nargs="*", help=", ".join(known))
    arguments = parser.parse_args()
    file = RESULTS / "kv_cache.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    for name in arguments.models or known:
        fresh = rows_of(name, known[name]) + (far_rows(name, known[name]) if name in FAR else [])
        kept = [row for row in kept if row["model"] != name] + fresh  # rows of models do not depend on each other
        write_json(file, {"command": "python benchmarks/kv_cache.py", "environment": environment(), "rows": kept})
        write_text(RESULTS / "kv_cache.md", f"`python benchmarks/kv_cache.py`\n\n{tables(kept)}")


if __name__ == "__main__":
    main()
