"""What every quantiser returns."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossamer.compress.quantize.statistics import Statistics
from gossamer.core.errors import ModelError
from gossamer.models.packed import LARGEST_WEIGHT, QuantizedTensor, Scheme

Needs = Literal["nothing", "inputs", "both models"]
"""What a technique wants to know of calibration: nothing, statistics of its layers' inputs, or statistics that tell the
inputs behind quantised layers from those that the unchanged model gives in their place."""


@dataclass(frozen=True)
class OnGrid:
    """What every quantiser is told: `bits` 2 to 8, `group` columns for each scale (None: whole rows), zero or none.

    Raises `PlanError` outside those ranges.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        _ = self.scheme

    @property
    def scheme(self) -> Scheme:
        """The grid's kind."""
        return Scheme(self.bits, self.group, self.symmetric)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight on its grid.

    `loss` is the layer's relative squared error in [0, ∞): of its output over the calibration inputs, or of the weight
    where there are no statistics. `weight_error` is always the weight's. `notes` tell what did not go as asked.
    """

    tensor: QuantizedTensor
    loss: float
    weight_error: float
    notes: tuple[str, ...] = ()


def judged(
    weight: Tensor, tensor: QuantizedTensor, statistics: Statistics | None, notes: tuple[str, ...] = ()
) -> Quantized:
    """The result with its errors measured against the original `weight` (rows, columns)."""
    error = weight - tensor.dequantize()
    weight_error = _share(
        float(error.square().sum(dtype=torch.float64)), float(weight.square().sum(dtype=torch.float64))
    )
    if statistics is None:
        return Quantized(tensor, weight_error, weight_error, notes)
    return Quantized(tensor, _share(statistics.loss(error), statistics.loss(weight)), weight_error, notes)


def usable(weight: Tensor) -> Tensor:
    """`weight` as float32, never touched by what follows.

    Raises `ModelError` if it is no matrix, or holds values that are not finite or too large for 16-bit scales.
    """
    if weight.dim() != 2 or weight.numel() == 0:
        raise ModelError(f"a weight of shape {tuple(weight.shape)} cannot be quantised: it must be a matrix")
    weight = weight.detach().float()
    largest = float(weight.abs().max())
    if not largest <= LARGEST_WEIGHT:
        raise ModelError(
            f"the weight holds values of magnitude {largest:g}: finite ones up to {LARGEST_WEIGHT:g} can be quantised"
        )
    return weight


def _share(part: float, whole: float) -> float:
    return max(part, 0.0) / whole if whole > 0 else 0.0
