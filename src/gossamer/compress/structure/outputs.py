"""What a model gives for a batch: to compare two models, to take gradients, to see how far two predictions are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.compress.calibrate import token_mask
from gossamer.core.errors import PlanError
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward
from gossamer.engine.walk import hidden_of
from gossamer.evaluate.tokens import IGNORE, counted, next_token_log_probs, picked_losses
from gossamer.models.hierarchy import Block
from gossamer.models.reloading import logits_of

TOLERANCE = 1e-4
"""Largest accepted difference between a reshaped model and the one that it stands for, as a share of the output."""

PLACES = 64
"""Places whose predictions `probe_of` looks at together."""


def log_probs_of(output: Any, batch: Batch) -> Tensor:
    """Log-probabilities (positions, classes), float32, of all tokens that are no padding."""
    logits = logits_of(output).float()
    mask = token_mask(batch)
    if mask is not None and logits.shape[:-1] == mask.shape:
        logits = logits[mask]
    return logits.reshape(-1, logits.shape[-1]).log_softmax(-1)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """A loss to take gradients of: the mean cross entropy of the next token where the model writes text.

    The text is that of the batch's labels where they are tokens, else its own input. For other models it is the mean
    square of the logits, whose gradients show what the predictions hang on without knowing the right ones.
    """
    logits = logits_of(forward(model, batch.inputs))
    labels = _text_labels(model, logits, batch)
    if labels is None:
        return logits.float().square().mean()
    return picked_losses(next_token_log_probs(logits, labels), counted(labels)).mean()


def probe_of(model: nn.Module, batch: Batch, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient there of the sum of all predictions, each with a sign ±1 of its own from `draw`.

    Further gradients from there on, squared, are on average over draws those of all predictions alike. Predictions are
    the log-probabilities of all tokens at the places where `loss_of` has a loss; where the model writes no text, the
    logits. No more than the two results and `PLACES` places' predictions are in memory at a time.
    """
    logits = logits_of(forward(model, batch.inputs))
    labels = _text_labels(model, logits, batch)
    if labels is None:
        return logits, _signs(logits, draw)
    gradient = torch.zeros_like(logits)
    with torch.no_grad():
        counting = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        for row, place in zip(*(torch.split(index.to(logits.device), PLACES) for index in counting), strict=True):
            chosen = logits[row, place].float()
            signs = _signs(chosen, draw)
            gradient[row, place] = signs.sub_(chosen.softmax(-1).mul_(signs.sum(-1, keepdim=True))).to(gradient.dtype)
    return logits, gradient


def _signs(predictions: Tensor, draw: np.random.Generator) -> Tensor:
    """±1 in the shape of `predictions`, the same on every device."""
    bits = np.unpackbits(np.frombuffer(draw.bytes(-(-predictions.numel() // 8)), np.uint8), count=predictions.numel())
    return torch.from_numpy(bits).view(predictions.shape).to(predictions).mul_(2).sub_(1)


def _text_labels(model: nn.Module, logits: Tensor, batch: Batch) -> Tensor | None:
    """The tokens that the `logits` are to predict, (rows, length), `IGNORE` where nothing counts; None where the model
    writes no text, or nothing counts anywhere."""
    whole: Any = model
    tokens = batch.inputs.get("decoder_input_ids", batch.inputs.get("input_ids"))
    if tokens is None or logits.dim() != 3 or logits.shape[:2] != tokens.shape or not whole.can_generate():
        return None
    labels = batch.labels
    if labels.shape != tokens.shape or labels.is_floating_point():
        mask = token_mask(batch)
        fits = mask is not None and mask.shape == tokens.shape
        labels = tokens.masked_fill(~mask, IGNORE) if mask is not None and fits else tokens
    return labels if len(counted(labels)) else None


def passed_on(hidden: Tensor, output: Any) -> Any:
    """What a block returns that passes `hidden` on, in the form of its `output`."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def skipping(model: nn.Module, blocks: Sequence[Block]) -> Iterator[None]:
    """Inside, these blocks return the hidden state that they are given."""

    def skip(forward: Callable[..., Any]) -> Callable[..., Any]:
        def skipped(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            return passed_on(hidden_of(args, kwargs), output)

        return skipped

    modules = [model.get_submodule(block.module) for block in blocks]
    try:
        for module in modules:  # the method itself, since models record hidden states before hooks that change them
            module.__dict__["forward"] = skip(module.forward)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def check_same(before: Any, after: Any, what: str) -> None:
    """Raises `PlanError` unless two outputs hold the same values within `TOLERANCE`."""
    for name, wanted in before.items():
        if not isinstance(wanted, Tensor) or not wanted.is_floating_point():
            continue
        found = after.get(name)
        if found is None or found.shape != wanted.shape:
            raise PlanError(f"{what}: the smaller model gives {name} in another form; leave this step out")
        largest = float(wanted.abs().max())
        if not torch.allclose(found, wanted, rtol=0, atol=TOLERANCE * largest):
            raise PlanError(
                f"{what}: the smaller model that this family's config describes computes something else; "
                "select other blocks, or leave this step out"
            )
