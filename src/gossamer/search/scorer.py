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
        self._owners = [task.owners(batch) for batch in self.batches]
        self._reference: list[Tensor] = []
        losses = []
        for batch in self.batches:
            log_probs = task.log_probs(forward(batch.inputs), batch)
            self._reference.append(log_probs)
            losses.append(task.losses(log_probs, batch))
        weight, (loss,) = self._per_example(losses)
        self.baseline_loss = float(np.average(loss, weights=weight))

    def score(self, outputs: Callable[[int, Batch], Any], share: float = 1.0) -> Score:
        """The score of a model whose output on batch number `i` is `outputs(i, batch)`.

        Only the first `share` of the batches (0 to 1, at least one) is scored; examples of the others weigh nothing.
        """
        kls, losses = [], []
        with torch.no_grad():
            for number, batch in enumerate(self.batches[: max(1, round(share * len(self.batches)))]):
                log_probs = self._task.log_probs(outputs(number, batch), batch)
                kls.append(kl_per_position(self._reference[number], log_probs))
                losses.append(self._task.losses(log_probs, batch))
        weight, (kl, loss) = self._per_example(kls, losses)
        return Score(kl, loss, weight)

    def _per_example(self, *values: list[Tensor]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Positions of each example, and means over them of per-position values of the first batches (0 without)."""
        owners, count = torch.cat(self._owners[: len(values[0])]), len(self._task)
        weight = torch.bincount(owners, minlength=count).numpy().astype(np.float64)
        means = [example_means(torch.cat(some), owners, count).nan_to_num(0.0).cpu().numpy() for some in values]
        return weight, means
