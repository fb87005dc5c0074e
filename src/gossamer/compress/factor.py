"""The factorised Hessian that GPTQ's error diffusion runs on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.core.errors import ModelError

_STRIP = 256

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

    def solve(self, matrix: Tensor) -> Tensor:
        """M (H + λ I)⁻¹ float32 for a `matrix` M (rows, columns), columns in the weight's own order."""
        half = torch.linalg.solve_triangular(
            self.pull, matrix[:, self.order], upper=False, left=False, unitriangular=True
        )
        half.div_(self.pivots).div_(self.pivots)
        found = torch.empty_like(matrix)
        found[:, self.order] = torch.linalg.solve_triangular(
            self.pull.T, half, upper=True, left=False, unitriangular=True
        )
        return found

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
    if not _finite(hessian):
        raise ModelError("a calibration Hessian holds NaN or infinite values: check the calibration data")
    dead = diagonal <= 0
    mean = float(diagonal.mean())
    order = torch.arange(len(diagonal), device=hessian.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    attempt = damping
    while mean > 0:
        pull = _transposed_root(hessian, order, (diagonal + attempt * mean).masked_fill_(dead, mean))
        if pull is not None:
            pivots = pull.diagonal().clone()
            return Factor(pull.div_(pivots.unsqueeze(1)), pivots, order, int(dead.sum()), attempt)
        if attempt >= DAMPING_CAP:
            break
        attempt = min(max(attempt * 10, 1e-4), DAMPING_CAP)
    return None


def _transposed_root(hessian: Tensor, order: Tensor, diagonal: Tensor) -> Tensor | None:
    """Rᵀ float32, R upper triangular with R Rᵀ the Hessian in this order, under another diagonal (in its own order).

    That is the Cholesky factor of the matrix read backwards, read backwards. Hessians are the largest things in memory
    while a layer is worked on, so this takes one matrix besides. None if it is not positive definite.
    """
    backwards = order.flip(0)
    for dtype in (torch.float32, torch.float64):
        matrix = torch.empty_like(hessian, dtype=dtype)
        for rows, picked in zip(torch.split(matrix, _STRIP), torch.split(backwards, _STRIP), strict=True):
            rows.copy_(hessian[picked][:, backwards])
        matrix.diagonal().copy_(diagonal[backwards])
        root = matrix.T  # by columns, as LAPACK wants it; the matrix is symmetric
        _, failed = torch.linalg.cholesky_ex(root, out=(root, torch.empty((), dtype=torch.int32)))
        if int(failed) == 0 and _finite(matrix):
            return _read_backwards(matrix).float()
    return None


def _read_backwards(matrix: Tensor) -> Tensor:
    """The matrix with rows and columns in the opposite order, in place."""
    flat = matrix.view(-1)
    half, step = len(flat) // 2, _STRIP * len(matrix)
    for start in range(0, half, step):
        stop = min(start + step, half)
        front, back = flat[start:stop], flat[len(flat) - stop : len(flat) - start]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)
    return matrix


def _finite(matrix: Tensor) -> bool:
    return all(bool(torch.isfinite(rows).all()) for rows in torch.split(matrix, _STRIP))
