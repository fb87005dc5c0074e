"""The factorised inverse Hessian that GPTQ's error diffusion runs on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.core.errors import ModelError

DAMPING_CAP = 1.0
"""The strongest damping tried, as a share of the Hessian's mean diagonal."""


@dataclass(frozen=True, eq=False)
class Factor:
    """`lower` (columns, columns) float32 with `lower @ lower.T` the inverse of the damped, ordered Hessian.

    It is the transpose of the upper Cholesky factor of the inverse that the GPTQ paper (arXiv 2210.17323) writes down:
    once the columns before j are fixed, one unit of rounding error in column j costs `1 / lower[j, j]²`, and moves
    column k > j by `lower[k, j] / lower[j, j]`. `order` int64 (columns,) gives the column at each position.
    `dead` counts inputs that calibration never saw active; `damping` is the share of the mean diagonal that was added.
    """

    lower: Tensor
    order: Tensor
    dead: int
    damping: float

    @property
    def costs(self) -> Tensor:
        """float32 (columns,) in the weight's own column order: the cost of a unit error, scaled to a mean of 1."""
        costs = torch.empty_like(self.lower[0])
        costs[self.order] = self.lower.diagonal() ** -2
        return costs / costs.mean()


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
    order = torch.arange(len(diagonal))
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    attempt = damping
    while mean > 0:
        damped = hessian.clone()
        damped.diagonal().add_(attempt * mean).masked_fill_(dead, mean)
        lower = _inverse_factor(damped[order][:, order])
        if lower is not None:
            return Factor(lower, order, int(dead.sum()), attempt)
        if attempt >= DAMPING_CAP:
            break
        attempt = min(max(attempt * 10, 1e-4), DAMPING_CAP)
    return None


def _inverse_factor(matrix: Tensor) -> Tensor | None:
    """Lower triangular L with L Lᵀ = matrix⁻¹ (L⁻ᵀ, reversed, is the Cholesky factor of the reversed matrix)."""
    for dtype in (torch.float32, torch.float64):
        root, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1).to(dtype))
        if int(failed) == 0:
            identity = torch.eye(len(matrix), dtype=dtype)
            lower = torch.linalg.solve_triangular(root.flip(0, 1).T.contiguous(), identity, upper=False)
            if bool(torch.isfinite(lower).all()):
                return lower.float()
    return None
