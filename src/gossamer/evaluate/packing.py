"""Reading a picture once for all questions about it: they follow it in one sequence, hidden from each other.

Each question of a packed row sees the common start of the prompts (the picture) and itself only, and its positions go
on from that start, so a causal model gives it what it gives the question alone, within float rounding. `packs` finds
out whether a model keeps to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

from gossamer.data.batch import Batch
from gossamer.evaluate.tokens import IGNORE

PLAIN = {"input_ids", "attention_mask", "pixel_values"}
MOST = 32
"""Questions in one row."""


def rows_of(images: Sequence[str]) -> list[tuple[int, ...]]:
    """Question numbers for each packed row: the questions about one picture, at most `MOST`, pictures as they come."""
    found: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        found.setdefault(image, []).append(number)
    return [tuple(some[start : start + MOST]) for some in found.values() for start in range(0, len(some), MOST)]


def packed(
    plain: Mapping[str, Tensor],
    answers: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    image_token: int | None,
) -> tuple[dict[str, Tensor], Tensor] | None:
    """Inputs and labels with one row for each of `rows` (places in `plain`, which holds a prompt and picture a row).

    Logits are asked for at the places before answer tokens only; the labels fit those. None where packing does not
    apply: other inputs than tokens and one picture a question, or prompts that differ before the picture ends.
    """
    import torch

    ids, mask = plain["input_ids"], plain["attention_mask"].bool()
    if image_token is None or set(plain) != PLAIN or len(plain["pixel_values"]) != len(ids):
        return None
    prompts = [row[real] for row, real in zip(ids, mask, strict=True)]
    start = _common(prompts)
    if not (prompts[0][:start] == image_token).any() or any((row[start:] == image_token).any() for row in prompts):
        return None
    parts = [[torch.cat([prompts[i][start:], ids.new_tensor(answers[i])]) for i in row] for row in rows]
    length = start + max(sum(map(len, row)) for row in parts)
    tokens = ids.new_zeros(len(rows), length)
    labels = torch.full_like(tokens, IGNORE)
    positions = torch.arange(length).repeat(len(rows), 1)
    owner = torch.full((len(rows), length), -1)
    tokens[:, :start] = prompts[0][:start]
    owner[:, :start] = 0
    for r, (row, questions) in enumerate(zip(rows, parts, strict=True)):
        at = start
        for number, (i, question) in enumerate(zip(row, questions, strict=True), 1):
            end = at + len(question)
            tokens[r, at:end] = question
            labels[r, end - len(answers[i]) : end] = ids.new_tensor(answers[i])
            positions[r, at:end] = start + torch.arange(len(question))
            owner[r, at:end] = number
            at = end
    same = owner[:, :, None] == owner[:, None, :]
    seen = (same | (owner[:, None, :] == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
    pictures = plain["pixel_values"][[row[0] for row in rows]]
    keep = (labels[:, 1:] != IGNORE).any(0).nonzero()[:, 0]
    inputs = {
        "input_ids": tokens, "attention_mask": bias[:, None], "position_ids": positions, "pixel_values": pictures,
        "logits_to_keep": torch.cat([keep, keep.new_tensor([length - 1])]),
    }  # fmt: skip
    return inputs, torch.cat([torch.full_like(labels[:, :1], IGNORE), labels[:, keep + 1]], 1)


def packs(model: Any, plain: Batch, together: Batch, task: Any) -> bool:
    """Whether `model` answers the packed questions as it answers the `plain` ones."""
    import torch

    from gossamer.evaluate.task import forward

    try:
        alone, joint = (task.log_probs(forward(model, batch, use_cache=False), batch) for batch in (plain, together))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False  # a model that takes no such masks says so in its own way
    return alone.shape == joint.shape and bool(torch.allclose(alone, joint, atol=1e-3))


def _common(rows: Sequence[Tensor]) -> int:
    """How many leading tokens all rows share, leaving each at least two."""
    shortest = min(len(row) for row in rows) - 2
    different = [(row[:shortest] != rows[0][:shortest]).nonzero() for row in rows]
    return min((int(places[0]) for places in different if len(places)), default=max(0, shortest))
