"""How large each input of a layer is, as scores see it."""

import torch
from torch import Tensor

from gossamer.compress.statistics import Statistics
from gossamer.core.errors import ModelError


def activity(weight: Tensor, statistics: Statistics | None) -> tuple[Tensor, tuple[str, ...]]:
    """The root mean square of each input of `weight` (rows, columns), float32 (columns,), and what is to be noted.

    It is ‖x_j‖₂ up to a factor that all columns share. Where calibration knows nothing, all inputs count alike. Raises
    `ModelError` for a Hessian that is not finite.
    """
    columns = weight.shape[1]
    if statistics is None:
        return weight.new_ones(columns), ("scored by weights alone: no calibration statistics",)
    power = statistics.hessian.diagonal()
    if not bool(torch.isfinite(power).all()):
        raise ModelError("a calibration Hessian holds NaN or infinite values: check the calibration data")
    dead = int((power <= 0).sum())
    if dead == columns:
        return weight.new_ones(columns), ("scored by weights alone: no input column was ever active in calibration",)
    notes = (f"{dead} input columns were never active in calibration: their weights go first",) if dead else ()
    return power.clamp_min(0).sqrt(), notes
