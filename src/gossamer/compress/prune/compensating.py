"""Pruning in which the weights that stay make up for those that go: settings, and what happens if they cannot."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor

from gossamer.compress.factor import Factor, check_damping
from gossamer.compress.passes import Needs, Sparse, usable
from gossamer.compress.prune.to_sparsity import ToSparsity, pruned
from gossamer.compress.prune.wanda import Wanda
from gossamer.compress.statistics import Statistics


@dataclass(frozen=True)
class Compensating(ToSparsity, ABC):
    """`damping` in (0, 1] is the share of the mean diagonal added to the Hessian; it grows tenfold while the Hessian is
    singular. Raises `ValueError` for damping outside its range.
    """

    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)

    @property
    def needs(self) -> Needs:
        """The inputs: without statistics nothing makes up for what goes."""
        return "inputs"

    def sparsify(self, weight: Tensor, statistics: Statistics | None) -> Sparse:
        """The pruned `weight` (rows, columns) for inputs with these `statistics`. Raises as `Wanda.sparsify` does.

        Without a Hessian to invert it is pruned by Wanda's score, and nothing makes up for it.
        """
        weight = usable(weight)
        self.check(*weight.shape)
        factor = None if statistics is None else statistics.factor(self.damping, False)
        if statistics is None or factor is None:
            found = Wanda(self.sparsity, self.pattern).sparsify(weight, statistics)
            why = "no calibration statistics" if statistics is None else "the Hessian is singular at every damping"
            return replace(found, notes=(*found.notes, f"nothing makes up for the weights that went: {why}"))
        values, mask = self.compensate(weight, statistics, factor)
        return pruned(weight, values, mask, statistics, factor.remarks(self.damping, "their weights go first"))

    @abstractmethod
    def compensate(self, weight: Tensor, statistics: Statistics, factor: Factor) -> tuple[Tensor, Tensor]:
        """What the weights become, float32 (rows, columns), and which stay, bool. `factor` is in stored order."""
