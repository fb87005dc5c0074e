"""What an evaluation is made of: a task feeds batches to a model, reads its output and sums up what it finds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gossamer.core.outcome import Measure
from gossamer.core.progress import SILENT, Progress
from gossamer.data.batch import Batch
from gossamer.engine.forward import device_of, placed

if TYPE_CHECKING:
    from torch import Tensor, nn

CACHE_BYTES = 256 * 2**20
"""Encoded batches that a task keeps, so that judging many candidates encodes each batch once."""


@runtime_checkable
class Task(Protocol):
    """A set of examples and how a model is judged on them.

    `metric` is the key of the main figure among what `measure` returns; `protocol` says how it was measured, in
    JSON-able values. Examples are numbered 0 to `len(task) - 1`; a position is one place in a model's output where
    the task compares something: a token, an answer, a (box, query) pair. Everything is deterministic.
    """

    name: str
    metric: str
    higher_is_better: bool
    protocol: dict[str, Any]

    def __len__(self) -> int:
        """Examples."""
        ...

    def subset(self, indices: Sequence[int]) -> Task:
        """The task on these examples, renumbered from 0 in the order given."""
        ...

    def batches(self, size: int) -> Iterator[Batch]:
        """All examples in order, `size` at a time, the last batch smaller; tensors on the CPU."""
        ...

    def log_probs(self, output: Any, batch: Batch) -> Tensor:
        """Normalised log-probabilities (positions, classes), float32, at the positions that count."""
        ...

    def owners(self, batch: Batch) -> Tensor:
        """The example that each position belongs to: (positions,) int64, on the CPU."""
        ...

    def losses(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """Negative log-likelihood in nats of the right answer at each position: (positions,)."""
        ...

    def results(self, model: nn.Module, progress: Progress = SILENT) -> Any:
        """What the model did on each example; `summarise` and `difference` read it."""
        ...

    def summarise(self, results: Any) -> dict[str, Measure]:
        """All figures with intervals; the main one under `metric`."""
        ...

    def difference(self, before: Any, after: Any) -> Measure:
        """The main figure of `after` minus that of `before`, with a paired bootstrap interval over examples."""
        ...

    def measure(self, model: nn.Module, progress: Progress = SILENT) -> dict[str, Measure]:
        """`summarise(results(model))`."""
        ...


def forward(model: nn.Module, batch: Batch, **extra: Any) -> Any:
    """The model's output on a batch, without gradients, on the model's own device."""
    import torch

    with torch.inference_mode():
        return model(**placed(batch.inputs, device_of(model)), **extra)


class BatchCache:
    """Keeps encoded batches up to `CACHE_BYTES`, the ones used last."""

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[tuple[int, ...], Batch] = OrderedDict()
        self._bytes = 0

    def get(self, indices: tuple[int, ...], encode: Callable[[tuple[int, ...]], Batch]) -> Batch:
        """The batch of these examples; `encode` makes it, outside of any inference mode, if it is not kept."""
        import torch

        if indices in self._kept:
            self._kept.move_to_end(indices)
            return self._kept[indices]
        with torch.inference_mode(False):
            batch = encode(indices)
        self._kept[indices] = batch
        self._bytes += _size(batch)
        while self._bytes > self._capacity and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return batch


def _size(batch: Batch) -> int:
    return sum(t.numel() * t.element_size() for t in (*batch.inputs.values(), batch.labels))


def spans(count: int, size: int) -> Iterator[tuple[int, ...]]:
    """0..count-1 in order, `size` numbers at a time. Raises `ValueError` for a size below 1."""
    if size < 1:
        raise ValueError(f"a batch holds at least 1 example, got {size}")
    for start in range(0, count, size):
        yield tuple(range(start, min(start + size, count)))
