"""Lessons on text that the compressed model writes itself: reverse KL where it really goes (arXiv 2306.08543)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.compress.calibrate import token_mask
from gossamer.compress.distill.distributions import bucketed, divergence, sharpened
from gossamer.core.errors import DataError, PlanError
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward
from gossamer.evaluate.tokens import IGNORE
from gossamer.models.reloading import logits_of


@dataclass(frozen=True, eq=False)
class OwnText:
    """A batch of which the model at hand writes some tokens anew, and the unchanged model, as `teacher`, judges them.

    `places` int64 (rows, tokens) are the positions written, from left to right, -1 where a row has fewer; `chances`
    (rows, tokens) in [0, 1) settle the tokens: at each place that of the inverse distribution function, so that equal
    models write equal texts. Tokens are drawn from `teacher_share` times the teacher's distribution and the rest the
    model's own. Losses are KL(model ‖ teacher) at the places written, given all before them, times the temperature's
    square; of the paper's gradient that is the single-step part. What the choice of a token does to later ones (a
    policy gradient) is left out.
    """

    batch: Batch
    teacher: nn.Module
    places: Tensor
    chances: Tensor
    teacher_share: float
    temperature: float

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        batch: Batch,
        tokens: int,
        teacher_share: float,
        temperature: float,
        draw: torch.Generator,
    ) -> "OwnText":
        """A window of up to `tokens` places at random in each row, among the tokens that the labels count, if any.

        Tokens that the config names (ends of text, images' places) stay and are never written. Raises `PlanError` for
        a model that writes no text, `DataError` for a batch without a token to write or predictions not finite.
        """
        whole: Any = teacher
        key = _key(batch)
        if key is None or not getattr(whole, "can_generate", lambda: False)():
            raise PlanError(
                f"heal: on_policy learns from text that the model writes, and {type(teacher).__name__} writes none: "
                "let loss be forward, reverse or features"
            )
        ids = batch.inputs[key]
        free = ~torch.isin(ids, _named(whole.config, ids))
        mask = token_mask(batch)
        if mask is not None and mask.shape == ids.shape:
            free &= mask
        if batch.labels.shape == ids.shape and not batch.labels.is_floating_point():
            free &= batch.labels != IGNORE
        free[:, 0] = False
        places = torch.full((len(ids), tokens), -1)
        for row, allowed in enumerate(free):
            found = allowed.nonzero()[:, 0]
            start = int(torch.randint(max(len(found) - tokens, 0) + 1, (), generator=draw))
            window = found[start : start + tokens]
            places[row, : len(window)] = window
        if not bool((places >= 0).any()):
            raise DataError("heal: on_policy finds no token to write in a batch: give data with answers or text")
        chances = torch.rand(places.shape, generator=draw, dtype=torch.float64)
        lesson = cls(_cut(batch, key, int(places.max()) + 1), teacher, places, chances, teacher_share, temperature)
        with torch.no_grad():
            if not bool(torch.isfinite(lesson._log_probs(teacher, lesson.batch)).all()):
                raise DataError(
                    "the unchanged model gives NaN or infinite values on the healing data: check it in float32"
                )
        return lesson

    def losses(self, model: nn.Module) -> Tensor:
        """The divergence at each place that `model` writes, in nats at temperature 1."""
        text = self.written(model)
        with torch.no_grad():
            wanted = sharpened(self._log_probs(self.teacher, text), self.temperature)
        found = sharpened(self._log_probs(model, text), self.temperature)
        return divergence(bucketed(found, None), bucketed(wanted, None)) * self.temperature**2

    @torch.no_grad()
    def written(self, model: nn.Module) -> Batch:
        """The batch with what `model` writes."""
        key = _key(self.batch)
        assert key is not None
        ids = self.batch.inputs[key].clone()
        text = replace(self.batch, inputs={**self.batch.inputs, key: ids})
        barred = _named(getattr(model, "config", None), ids)
        for number in range(self.places.shape[1]):
            rows = (self.places[:, number] >= 0).nonzero()[:, 0]
            at = self.places[rows, number]
            chance = (1 - self.teacher_share) * self._next(model, text, rows, at)
            if self.teacher_share:
                chance += self.teacher_share * self._next(self.teacher, text, rows, at)
            chance[:, barred[barred < chance.shape[1]]] = 0
            total = chance.cumsum(1)
            reached = total >= self.chances[rows, number, None] * total[:, -1:]
            ids[rows, at] = (reached & (chance > 0)).int().argmax(1).to(ids.dtype)
        return text

    @staticmethod
    def _next(model: nn.Module, text: Batch, rows: Tensor, at: Tensor) -> Tensor:
        """The probabilities (rows, vocabulary), float64, of the tokens at these places."""
        logits = logits_of(forward(model, text.inputs))
        return logits[rows, at - 1].cpu().double().softmax(-1)

    def _log_probs(self, model: nn.Module, text: Batch) -> Tensor:
        """The log-probabilities (places, vocabulary), float32, of the tokens at all places."""
        rows, columns = (self.places >= 0).nonzero(as_tuple=True)
        logits = logits_of(forward(model, text.inputs))
        return logits[rows, self.places[rows, columns] - 1].float().log_softmax(-1)


def _key(batch: Batch) -> str | None:
    """The input that holds the tokens of the text that the model writes on."""
    return next((key for key in ("decoder_input_ids", "input_ids") if key in batch.inputs), None)


def _named(config: Any, ids: Tensor) -> Tensor:
    """The token ids that a config names."""
    entries: Mapping[str, Any] = {} if config is None else {**config.get_text_config().to_dict(), **config.to_dict()}
    named = {
        value
        for name, value in entries.items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= 0
    }
    return torch.tensor(sorted(named), dtype=ids.dtype)


def _cut(batch: Batch, key: str, length: int) -> Batch:
    """The batch without tokens from `length` on, where it is text alone: no place is judged by those behind it."""
    shape = batch.inputs[key].shape
    if any(value.shape != shape for value in batch.inputs.values()):
        return batch
    return replace(batch, inputs={name: value[:, :length] for name, value in batch.inputs.items()})
