"""How far a changed model is from the unchanged one, on a fixed set of examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.data.batch import Batch
from gossamer.evaluate.divergence import example_means, kl_per_position
from gossamer.evaluate.task import Task


@dataclass(frozen=True)
class Score:
    """Per example: `kl`, the divergence KL(unchanged ‖ changed), and `loss`, the negative log-likelihood of the right
    answer, both in nats per counted position; `weight` is the number of positions."""

    kl: np.ndarray
    loss: np.ndarray
    weight: np.ndarray

    @property
    def mean_kl(self) -> float:
        """KL in nats per position over the whole set."""
        return float(np.average(self.kl, weights=self.weight))

    @property
    def mean_loss(self) -> float:
        """Task loss in nats per position over the whole set."""
        return float(np.average(self.loss, weights=self.weight))

    @property
    def kl_stderr(self) -> float:
        """Standard error of `mean_kl` over examples."""
        share = self.weight / self.weight.sum()
        return float(np.sqrt(np.sum((share * (self.kl - self.mean_kl)) ** 2)))


class Scorer:
    """Scores the model that it was made with, as that model's weights stand at the time of the call.

    The unchanged model's log-probabilities are kept in memory: positions × classes × 4 bytes.
    """

    def __init__(self, model: nn.Module, task: Task, batch_size: int, forward: Callable[[dict[str, Any]], Any]) -> None:
        self._task = task
        self.batches: list[Batch] = list(task.batches(batch_size))
        self._reference: list[Tensor] = []
        self._owners: list[Tensor] = []
        losses = []
        for batch in self.batches:
            log_probs = task.log_probs(forward(batch.inputs), batch)
            self._reference.append(log_probs)
            self._owners.append(task.owners(batch) - batch.indices[0])
            losses.append(_per_example(task.losses(log_probs, batch), self._owners[-1], batch.size))
        self.weight = np.concatenate(
            [
                torch.bincount(owner, minlength=batch.size).numpy()
                for owner, batch in zip(self._owners, self.batches, strict=True)
            ]
        ).astype(np.float64)
        self.baseline_loss = float(np.average(np.concatenate(losses), weights=self.weight))

    def score(self, outputs: Callable[[int, Batch], Any]) -> Score:
        """The score of a model whose output on batch number `i` is `outputs(i, batch)`."""
        kls, losses = [], []
        with torch.no_grad():
            for number, batch in enumerate(self.batches):
                log_probs = self._task.log_probs(outputs(number, batch), batch)
                reference, owner = self._reference[number], self._owners[number]
                kls.append(_per_example(kl_per_position(reference, log_probs), owner, batch.size))
                losses.append(_per_example(self._task.losses(log_probs, batch), owner, batch.size))
        return Score(np.concatenate(kls), np.concatenate(losses), self.weight)


def _per_example(values: Tensor, owners: Tensor, size: int) -> np.ndarray:
    """Means of `values` (positions,) over each of `size` examples, 0 where an example has no position."""
    return example_means(values, owners, size).nan_to_num(0.0).numpy()
