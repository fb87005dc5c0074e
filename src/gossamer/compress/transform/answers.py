"""What the unchanged model answers on calibration data, to be kept while its weights are rounded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.compress.distill.lessons import Lesson, Prediction, token_log_probs
from gossamer.compress.transform.trial import change, results
from gossamer.core.errors import DataError
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward

CLASSES = 128
"""The likeliest classes of which distributions are kept (and one bucket for all others)."""

MASKED = 1e6
"""Magnitude from which on values stand for minus infinity."""

SAME = 1e-3
"""Largest difference of the outputs by which rows of a batch count as computed apart."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The tensors of the unchanged model's output (see `results`), where they are more than classes' logits.

    Losses are squared differences, as shares of each tensor's mean square; values that mask are left out.
    """

    batch: Batch
    tensors: list[Tensor]

    def losses(self, model: nn.Module) -> Tensor:
        """One for each vector of each tensor, float32."""
        found = []
        for now, then in zip(results(forward(model, self.batch.inputs)), self.tensors, strict=True):
            then, now = (value.float().where(then.abs() < MASKED, 0) for value in (then, now))
            size = then.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
            found.append((now - then).square().mean(-1).reshape(-1) / size)
        return torch.cat(found)


@torch.no_grad()
def lessons_of(model: nn.Module, batches: Sequence[Batch], samples: int, rows: int) -> list[Lesson]:
    """What `model` gives for the first `samples` examples (whole parts), in parts of `rows` where rows can be apart.

    Distributions where logits are all it gives, and otherwise its output. Raises `DataError` for NaN.
    """
    lessons: list[Lesson] = []
    left = samples
    for batch in _divided(model, batches, rows):
        if left <= 0:
            break
        left -= batch.size
        output = forward(model, batch.inputs)
        tensors = results(output)
        if any(bool(value.isnan().any()) for value in tensors):
            raise DataError("the unchanged model gives NaN on the calibration data: check both, it in float32")
        if len(tensors) == 1 and tensors[0] is getattr(output, "logits", None):
            lessons.append(Prediction.of(model, batch, token_log_probs, CLASSES, 1.0, False))
        else:
            lessons.append(Answer(batch, tensors))
    return lessons


def _divided(model: nn.Module, batches: Sequence[Batch], rows: int) -> Iterator[Batch]:
    """The batches in parts of `rows`; whole, where a tensor is not laid out by example or outputs differ then."""
    apart: bool | None = None
    for batch in batches:
        if batch.size <= rows or any(len(value) != batch.size for value in batch.inputs.values() if value.dim()):
            yield batch
            continue
        parts = list(batch.parts(rows))
        if apart is None:
            apart = _apart(model, batch, parts[-1])
        yield from parts if apart else [batch]


def _apart(model: nn.Module, batch: Batch, last: Batch) -> bool:
    """Whether the last rows give alone what they give in the batch."""
    try:
        alone = results(forward(model, last.inputs))
    except (RuntimeError, IndexError, ValueError):
        return False
    whole = [value[-last.size :] for value in results(forward(model, batch.inputs))]
    return (
        all(one.shape == other.shape for one, other in zip(alone, whole, strict=True)) and change(whole, alone) < SAME
    )
