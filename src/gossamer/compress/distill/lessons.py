"""Lessons: what the unchanged model gave for a batch, and how far another model is from it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gossamer.compress.calibrate import token_mask
from gossamer.compress.distill.distributions import bucketed, divergence, likeliest, sharpened
from gossamer.core.errors import DataError, ModelError
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward

Reading = Callable[[Any, Batch], Tensor]
"""Normalised log-probabilities (positions, classes) at the positions that count, given a model's output and the batch;
the `log_probs` of every task is one."""


class Lesson(Protocol):
    """A batch with what the unchanged model gave for it."""

    def losses(self, model: nn.Module) -> Tensor:
        """How far `model` is from that at each position, float32 (positions,), with gradients where they are on."""
        ...


@dataclass(frozen=True, eq=False)
class Prediction:
    """The unchanged model's distributions: `log_probs` float32 (positions, kept) of `classes` (see `bucketed`).

    Losses are KL(unchanged ‖ model), or KL(model ‖ unchanged) if `reverse`, times the temperature's square so that
    gradients keep their size.
    """

    batch: Batch
    log_probs: Tensor
    classes: Tensor | None
    read: Reading
    temperature: float
    reverse: bool

    @classmethod
    def of(
        cls, model: nn.Module, batch: Batch, read: Reading, top_k: int | None, temperature: float, reverse: bool
    ) -> "Prediction":
        """Asks the unchanged `model`. Raises `DataError` if it predicts nothing finite."""
        with torch.no_grad():
            found = sharpened(read(forward(model, batch.inputs), batch).float(), temperature)
            _check(found.amax(-1))
            classes = likeliest(found, top_k)
            return cls(batch, bucketed(found, classes), classes, read, temperature, reverse)

    def losses(self, model: nn.Module) -> Tensor:
        """The divergence at each position, in nats at temperature 1."""
        found = sharpened(self.read(forward(model, self.batch.inputs), self.batch).float(), self.temperature)
        student = bucketed(found, self.classes)
        pair = (student, self.log_probs) if self.reverse else (self.log_probs, student)
        return divergence(*pair) * self.temperature**2


@dataclass(frozen=True, eq=False)
class States:
    """The unchanged model's hidden states: for each module of `states` what it puts out, float32 (positions, width).

    Losses are squared distances, as shares of the mean square of the module's unchanged states.
    """

    batch: Batch
    states: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, batch: Batch, modules: Sequence[str]) -> "States":
        """Asks the unchanged `model`. Raises `DataError` for states that are not finite."""
        with torch.no_grad(), _outputs(model, modules) as found:
            forward(model, batch.inputs)
        states = {name: _positions(output, batch) for name, output in found.items()}
        for state in states.values():
            _check(state)
        return cls(batch, states)

    def losses(self, model: nn.Module) -> Tensor:
        """The relative squared distance at each position of each module."""
        with _outputs(model, tuple(self.states)) as found:
            forward(model, self.batch.inputs)
        shares = []
        for name, state in self.states.items():
            size = state.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
            shares.append((_positions(found[name], self.batch) - state).square().mean(-1) / size)
        return torch.cat(shares)


def token_log_probs(output: Any, batch: Batch) -> Tensor:
    """The `Reading` for any output with logits (..., classes): all positions, but for padding tokens.

    Raises `ModelError` for an output without logits.
    """
    logits = getattr(output, "logits", None)
    if logits is None:
        raise ModelError(f"{type(output).__name__} holds no logits to learn from: learn features, or name a task")
    return _positions(logits, batch).log_softmax(-1)


def _positions(values: Tensor, batch: Batch) -> Tensor:
    """Values (..., width) as float32 (positions, width), without padding where they are laid out in tokens."""
    mask = token_mask(batch)
    if mask is not None and values.dim() > 2 and values.shape[:2] == mask.shape:
        values = values[mask.to(values.device)]
    return values.reshape(-1, values.shape[-1]).float()


@contextmanager
def _outputs(model: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What these modules put out inside, by their names; the first entry of tuples."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return keep

    with ExitStack() as stack:
        for name in modules:
            stack.callback(model.get_submodule(name).register_forward_hook(hook(name)).remove)
        yield found


def _check(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            "the unchanged model gives NaN or infinite values on the calibration data: check both, it in float32"
        )
