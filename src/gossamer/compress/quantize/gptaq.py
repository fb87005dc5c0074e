"""GPTAQ: error diffusion that passes on, column by column, what earlier layers did to the inputs (arXiv 2504.02692)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.compress.factor import Factor
from gossamer.compress.passes import Needs, usable
from gossamer.compress.quantize.gptq import Gptq
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique


@technique("gptaq")
@dataclass(frozen=True)
class Gptaq(Gptq):
    """GPTQ whose aim is the unchanged model's output, each column's share of the difference moved to later columns.

    Qronos solves for all of that difference beforehand; GPTAQ leaves out what would fall on columns already rounded.
    `alpha` in (0, 1] is the share of the difference that is made up for, a quarter in the authors' code. Other settings
    are GPTQ's. Raises `ValueError` for an alpha outside its range.
    """

    alpha: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha cannot be {self.alpha}: it is above 0 and at most 1")

    @property
    def needs(self) -> Needs:
        """Both models' inputs."""
        return "both models"

    def aim(self, weight: Tensor, statistics: Statistics, factor: Factor | None) -> tuple[Tensor, Factor | None]:
        """The centre of `asymmetric`; without a drift, plain GPTQ's."""
        if statistics.drift is None or factor is None:
            return weight, factor
        centre, moved = asymmetric(weight, factor, self.alpha * statistics.drift)
        return usable(centre), moved


def asymmetric(weight: Tensor, factor: Factor, drift: Tensor) -> tuple[Tensor, Factor]:
    """The weight and the factor about which plain error diffusion gives GPTAQ's codes.

    `drift` float32 (columns, columns) is D, the mean of (u - x) xᵀ. With H = R Rᵀ the paper's second term is P = S R⁻¹,
    S the part of D R⁻ᵀ right of the diagonal: when column k has been rounded, its value t_k before that times P_k· is
    added to the columns that follow. Solved as in `Factor`, with d = w - q, column j then aims at
    t_j = w_j + Σ_k (d_k R_kj + t_k S_kj) / R_jj. Let R̄ and S̄ be R and S with each column divided by R_jj; all rows of
    t follow from t (I - S̄) = w R̄ - q (R̄ - I), which is diffusion with the pull (R̄ - S̄)(I - S̄)⁻¹ about
    w R̄ (R̄ - S̄)⁻¹.
    """
    order = factor.order
    root = factor.pull.T.double()
    shares = torch.linalg.solve_triangular(root, drift[order][:, order].T.double(), upper=True).T
    shares = (shares / factor.pivots.double().square()).triu_(1)
    moved = root - shares
    centre = torch.empty_like(weight)
    ordered = torch.linalg.solve_triangular(moved, weight[:, order].double() @ root, upper=True, left=False)
    centre[:, order] = ordered.float()
    later = torch.eye(len(order), dtype=torch.double, device=order.device) - shares
    pull = torch.linalg.solve_triangular(later, moved, upper=True, left=False, unitriangular=True)
    return centre, replace(factor, pull=pull.T.float().contiguous())
