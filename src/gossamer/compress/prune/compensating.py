"""Pruning in which the weights that stay make up for those that go: settings, and what happens if they cannot."""

from dataclasses import dataclass, replace

from torch import Tensor

from gossamer.compress.factor import DAMPING_CAP, Factor
from gossamer.compress.passes import Needs, Sparse
from gossamer.compress.prune.to_sparsity import ToSparsity
from gossamer.compress.prune.wanda import Wanda
from gossamer.compress.statistics import Statistics


@dataclass(frozen=True)
class Compensating(ToSparsity):
    """`damping` in (0, 1] is the share of the mean diagonal added to the Hessian; it grows tenfold while the Hessian is
    singular. Raises `ValueError` for damping outside its range.
    """

    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping <= DAMPING_CAP:
            raise ValueError(f"damping cannot be {self.damping}: it is above 0 and at most {DAMPING_CAP:g}")

    @property
    def needs(self) -> Needs:
        """The inputs: without statistics nothing makes up for what goes."""
        return "inputs"

    def uncompensated(self, weight: Tensor, statistics: Statistics | None) -> Sparse:
        """`weight` (rows, columns) pruned by Wanda's score, since there is no Hessian to invert."""
        found = Wanda(self.sparsity, self.pattern).sparsify(weight, statistics)
        why = "no calibration statistics" if statistics is None else "the Hessian is singular at every damping"
        return replace(found, notes=(*found.notes, f"nothing makes up for the weights that went: {why}"))

    def remarks(self, factor: Factor) -> tuple[str, ...]:
        """What did not go as asked in factorising the Hessian."""
        notes = []
        if factor.damping != self.damping:
            notes.append(f"the Hessian is nearly singular: damping was raised to {factor.damping:g}")
        if factor.dead:
            notes.append(f"{factor.dead} input columns were never active in calibration: their weights go first")
        return tuple(notes)
