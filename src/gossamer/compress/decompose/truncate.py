"""The matrix of given rank whose layer comes closest to the whole one on the calibration inputs.

With H the mean of x xᵀ and H = R Rᵀ, the output error of W − P is ‖(W − P) R‖². By Eckart and Young the best P of a
rank is U Uᵀ W, where U holds the first left singular vectors of W R: that truncates the singular values of W R and
multiplies by R⁻¹ (SVD-LLM, arXiv 2403.07378; LoRD, arXiv 2309.14021), without the inverse. A P of this form, even with
a U that is only near the best, lowers the error on any inputs.
"""

import torch
from torch import Tensor

from gossamer.compress.factor import Factor
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import PlanError
from gossamer.models.low_rank import LowRank

_EXACT_SIDE = 512
_OVERSAMPLING = 16
_ITERATIONS = 8


def truncate(weight: Tensor, rank: int, statistics: Statistics | None, damping: float) -> LowRank:
    """The best matrix of `rank` in the place of `weight` float32 (rows, columns); without statistics, the plain SVD.

    `damping` in (0, 1] is the share of the mean diagonal added to the Hessian, as in `factorise`: it grows while the
    Hessian is singular, and inputs that were never active count as the mean. A Hessian of zeros tells nothing and
    counts as none. Raises `PlanError` for a rank beyond the smaller side, `ModelError` for a Hessian with NaN.
    """
    check_rank(rank, *weight.shape)
    factor = None if statistics is None else statistics.factor(damping, act_order=True)
    left = _directions(weight if factor is None else _on_inputs(weight, factor), rank)
    return _balanced(left, left.T @ weight)


def remarks(statistics: Statistics | None, damping: float) -> tuple[str, ...]:
    """What `truncate` could not do as asked with these statistics."""
    factor = None if statistics is None else statistics.factor(damping, act_order=True)
    if factor is None:
        reason = "no calibration statistics" if statistics is None else "the calibration inputs are all zero"
        return (f"decomposed by the plain SVD: {reason}",)
    return factor.remarks(damping, "they count as average ones")


def check_rank(rank: int, rows: int, columns: int) -> None:
    """Raises `PlanError` for a rank beyond the smaller side."""
    if rank > min(rows, columns):
        raise PlanError(
            f"rank {rank} is too large for a matrix of {rows} x {columns}: at most {min(rows, columns)} is accepted"
        )


def _on_inputs(weight: Tensor, factor: Factor) -> Tensor:
    """W R (rows, columns), up to an order of the columns, which does not change the left singular vectors."""
    return (weight[:, factor.order] @ factor.pull.T).mul_(factor.pivots)


def _directions(matrix: Tensor, rank: int) -> Tensor:
    """The first `rank` left singular vectors, float32 (rows, rank), or nearly so for large matrices and small ranks.

    Exact ones come from the eigenvectors of the smaller Gram matrix in float64, which tells singular values apart down
    to 1e-8 of the largest. Otherwise a randomised SVD (arXiv 0909.4061) is far quicker.
    """
    side = min(matrix.shape)
    sketch = rank + max(rank // 2, _OVERSAMPLING)
    if side > _EXACT_SIDE and 4 * sketch <= side:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)  # equal weights give equal factors
            return torch.svd_lowrank(matrix, sketch, _ITERATIONS)[0][:, :rank]
    double = matrix.double()
    if matrix.shape[0] <= matrix.shape[1]:
        return torch.linalg.eigh(double @ double.T)[1].flip(1)[:, :rank].float()
    right = torch.linalg.eigh(double.T @ double)[1].flip(1)[:, :rank]
    return torch.linalg.qr(double @ right)[0].float()


def _balanced(left: Tensor, right: Tensor) -> LowRank:
    """Both factors at 16 bits, each column of `left` and row of `right` scaled to the same largest magnitude."""
    high, wide = left.abs().amax(0), right.abs().amax(1)
    scale = torch.where(wide > 0, (wide / high).sqrt(), 1.0)
    return LowRank((left * scale).half(), (right / scale[:, None]).half())
