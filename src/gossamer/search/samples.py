"""A few examples answered before and after, for people to look at."""

import base64
import io
from typing import Any

import numpy as np

from gossamer.evaluate.task import Task


def answer_samples(task: Task, before: Any, after: Any, count: int = 8) -> list[dict[str, Any]]:
    """Questions with their images and both answers: changed ones first, half of the places at most, then others from
    all over the set.

    Only tasks with images and answers (`vqa`) have such samples; others give an empty list.
    """
    if task.name != "vqa":
        return []
    changed = np.flatnonzero(np.array(before.predictions) != np.array(after.predictions))[: count // 2].tolist()
    spread = np.linspace(0, len(task) - 1, 2 * count).round().astype(int).tolist()
    others = [number for number in dict.fromkeys(spread) if number not in changed][: count - len(changed)]
    samples = []
    for number in [*changed, *others]:
        example = task.examples[number]  # type: ignore[attr-defined]
        samples.append(
            {
                "prompt": example.question,
                "before": before.predictions[number],
                "after": after.predictions[number],
                "expected": example.answer,
                "before_right": bool(before.correct[number]),
                "after_right": bool(after.correct[number]),
                "image": data_uri(example.image.load()),
            }
        )
    return samples


def continuations(task: Task, tokenizer: Any, model: Any, count: int = 3) -> list[tuple[str, str]]:
    """(beginning, greedy continuation of 40 tokens) of a few test windows; empty for tasks that are not text."""
    import torch

    if task.name != "text" or tokenizer is None:
        return []
    found = []
    for number in range(0, len(task), max(1, len(task) // count))[:count]:
        ids = next(iter(task.subset([number]).batches(1))).inputs["input_ids"][:, :48]
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
            )
        found.append((tokenizer.decode(ids[0]), tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
    return found


def continuation_samples(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Continuations of the same beginnings side by side."""
    return [
        {"prompt": prompt, "before": old, "after": new} for (prompt, old), (_, new) in zip(before, after, strict=True)
    ]


def data_uri(image: Any) -> str:
    """A PIL image as a PNG `data:` URI."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
