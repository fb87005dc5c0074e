"""Reading a picture once for all questions about it: the common start of the prompts is cached and reused.

A causal model's states at the image tokens do not depend on the question behind them, so they are computed once a
picture, and each question continues from a copy. The result is that of the plain pass within float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

from gossamer.data.batch import Batch
from gossamer.evaluate.tokens import IGNORE

PLAIN = {"input_ids", "attention_mask", "pixel_values"}


def shared_log_probs(model: nn.Module, batch: Batch, images: Sequence[str], image_token: int | None) -> Tensor | None:
    """Log-probabilities (positions, vocabulary) of a teacher-forced batch, positions as in `next_token_log_probs`.

    `images` names each row's picture. None where sharing does not apply: no picture is asked about twice, inputs
    that are not one token row and one picture a question, prompts that differ before the image ends, or a model
    whose cache cannot be copied.
    """
    import torch

    inputs = batch.inputs
    if set(inputs) != PLAIN or len(inputs["pixel_values"]) != batch.size or len(set(images)) == batch.size:
        return None
    rows = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    start = _common(rows)
    rest = [row[start:] for row in rows]
    if not start or image_token is None or not (rows[0][:start] == image_token).any():
        return None
    if any((row == image_token).any() for row in rest):
        return None
    names = list(dict.fromkeys(images))
    firsts = torch.tensor([images.index(name) for name in names])
    device = next(model.parameters()).device
    with torch.inference_mode():
        head = rows[0][:start].expand(len(names), -1)
        seen: Any = model(
            input_ids=head.to(device), attention_mask=torch.ones_like(head).to(device),
            pixel_values=inputs["pixel_values"][firsts].to(device), use_cache=True,
        )  # fmt: skip
        cache = seen.past_key_values
        if not hasattr(cache, "reorder_cache"):
            return None
        cache.reorder_cache(torch.tensor([names.index(name) for name in images], device=device))
        ids = torch.nn.utils.rnn.pad_sequence(rest, batch_first=True)
        real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rest], batch_first=True)
        mask = torch.cat([torch.ones(batch.size, start, dtype=real.dtype), real], 1)
        logits = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), past_key_values=cache, use_cache=True
        ).logits
        answers = (batch.labels != IGNORE).sum(1)
        places = [
            (r, len(rest[r]) - int(n) - 1 + k) for r, n in enumerate(answers.tolist()) for k in range(int(n))
        ]  # the last token of the question, then the answer's own but the last
        at = torch.tensor(places, device=device)
        found: Tensor = logits[at[:, 0], at[:, 1]].float().log_softmax(-1)
    return found


def _common(rows: list[Tensor]) -> int:
    """How many leading tokens all rows share, leaving each at least two."""
    shortest = min(len(row) for row in rows) - 2
    different = [(row[:shortest] != rows[0][:shortest]).nonzero() for row in rows]
    return min((int(places[0]) for places in different if len(places)), default=max(0, shortest))
