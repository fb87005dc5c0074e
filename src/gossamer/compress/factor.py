"""The factorised Hessian that GPTQ's error diffusion runs on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.core.errors import ModelError

DAMPING_CAP = 1.0
"""The strongest damping tried, as a share of the Hessian's mean diagonal."""


@dataclass(frozen=True, eq=False)
class Factor:
    """The damped, ordered Hessian as R Rᵀ with R upper triangular; R⁻¹ is the factor of the inverse in the GPTQ paper.

    GPTQ (arXiv 2210.17323) pushes each rounding error on through R⁻¹. The same codes follow from R without inverting
    it (Babai's nearest plane, arXiv 2507.18553): if d_k are the errors of the columns before j against the original
    weight, column j aims at `w_j + Σ_k d_k R_kj / R_jj`. `pull` (columns, columns) float32 holds R_kj / R_jj at [j, k].
    One unit of remaining error in column j costs R_jj²; `pivots` float32 (columns,) are the R_jj.
    `order` int64 (columns,) gives the column at each position. `dead` counts inputs that calibration never saw active;
    `damping` is the share of the mean diagonal that was added.
    """

    pull: Tensor
    pivots: Tensor
    order: Tensor
    dead: int
    damping: float

    @property
    def costs(self) -> Tensor:
        """float32 (columns,) in the weight's own column order: the cost of a unit error, scaled to a mean of 1."""
        costs = torch.empty_like(self.pivots)
        costs[self.order] = self.pivots.square()
        return costs / costs.mean()

    def remarks(self, asked: float, dead: str) -> tuple[str, ...]:
        """What did not go as `asked` of the damping, and what becomes of columns that were never active (`dead`)."""
        notes = []
        if self.damping != asked:
            notes.append(f"the Hessian is nearly singular: damping was raised to {self.damping:g}")
        if self.dead:
            notes.append(f"{self.dead} input columns were never active in calibration: {dead}")
        return tuple(notes)


def check_damping(damping: float) -> None:
    """Raises `ValueError` for a damping that is not in (0, 1]."""
    if not 0 < damping <= DAMPING_CAP:
        raise ValueError(f"damping cannot be {damping}: it is above 0 and at most {DAMPING_CAP:g}")


def factorise(hessian: Tensor, damping: float, act_order: bool) -> Factor | None:
    """Damps, orders and factorises a Hessian (columns, columns); None if it is singular even at `DAMPING_CAP`.

    Inputs that were never active get a diagonal of the mean, which makes them independent of all others.
    `act_order` puts the columns with the largest diagonal first. Damping starts at `damping` and grows tenfold while
    the matrix is not positive definite in float32 and in float64. Raises `ModelError` for a Hessian with NaN.
    """
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(hessian).all()):
        raise ModelError("a calibration Hessian holds NaN or infinite values: check the calibration data")
    dead = diagonal <= 0
    mean = float(diagonal.mean())
    order = torch.arange(len(diagonal), device=hessian.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    attempt = damping
    while mean > 0:
        damped = hessian.clone()
        damped.diagonal().add_(attempt * mean).masked_fill_(dead, mean)
        root = _reversed_cholesky(damped[order][:, order] if act_order else damped)
        if root is not None:
            pivots = root.diagonal().clone()
            return Factor(root.div_(pivots).T.contiguous(), pivots, order, int(dead.sum()), attempt)
        if attempt >= DAMPING_CAP:
            break
        attempt = min(max(attempt * 10, 1e-4), DAMPING_CAP)
    return None


def _reversed_cholesky(matrix: Tensor) -> Tensor | None:
    """Upper triangular R float32 with R Rᵀ = matrix: the Cholesky factor of the matrix read backwards."""
    for dtype in (torch.float32, torch.float64):
        root, failed = torch.linalg.cholesky_ex(matrix.to(dtype).flip(0, 1))
        if int(failed) == 0 and bool(torch.isfinite(root).all()):
            return root.flip(0, 1).float()
    return None
