"""Qronos: rounding that also makes up for what earlier layers did to the inputs (arXiv 2505.11695)."""

from dataclasses import dataclass

from torch import Tensor

from gossamer.compress.factor import Factor
from gossamer.compress.passes import Needs, usable
from gossamer.compress.quantize.gptq import Gptq
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique


@technique("qronos")
@dataclass(frozen=True)
class Qronos(Gptq):
    """GPTQ whose aim is the unchanged model's output, ‖W u − Ŵ x‖² with x the inputs behind quantised layers.

    The best unrounded weight for that is the regression W C H⁻¹, C the mean of u xᵀ (see `Statistics.target`); what
    remains, (Ŵ − W C H⁻¹) H (Ŵ − W C H⁻¹)ᵀ, is GPTQ's own problem about another centre. The paper gets the same codes
    by correcting before the first column and diffusing from there on. Settings are GPTQ's. `damping` is the ridge too
    and larger than GPTQ's: the regression has as many unknowns as the weight, and fits a short calibration set all too
    well. Its tokens weigh as much as the predictions hang on them (`guided`).
    """

    damping: float = 0.3
    guided: bool = True

    @property
    def needs(self) -> Needs:
        """Both models' inputs."""
        return "both models"

    def aim(self, weight: Tensor, statistics: Statistics, factor: Factor | None) -> tuple[Tensor, Factor | None]:
        """The regression, diffused as GPTQ does."""
        return usable(statistics.target(weight, factor)), factor
