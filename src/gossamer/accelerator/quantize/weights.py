"""Weights on the integer grid: 8 bits with a step for each row, or 4 bits in groups whose steps are multiples of it.

The 4-bit form is VS-Quant (Dai et al. 2021, arXiv 2102.04503): a group's step is a 4-bit number times its row's step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.core.errors import SettingError

_SHRINK = torch.linspace(0.7, 1.0, 7)
"""Shares of a group's largest value that are tried as the clip of its 4-bit grid."""


@dataclass(frozen=True)
class Precision:
    """Bits of the blocks' weights, 8 or 4, and columns of a 4-bit group."""

    bits: int = 8
    group: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise SettingError(f"weights of {self.bits} bits are not possible: 4 or 8")
        if self.group < 2 or self.group & (self.group - 1):
            raise SettingError(f"group {self.group} is not possible: a power of two, 2 or more")


@dataclass(frozen=True, eq=False)
class Codes:
    """`codes` int8 (N, K); `steps` float (N,); `groups` 1 … 15 (N, ceil(K / group)) multiply a row's step."""

    codes: Tensor
    steps: Tensor
    groups: Tensor | None = None
    group: int = 0

    def values(self) -> Tensor:
        """The weight (N, K) they stand for."""
        values = self.codes.float() * self.steps[:, None]
        if self.groups is None:
            return values
        return values * self.groups.float().repeat_interleave(self.group, 1)[:, : values.shape[1]]


def quantize_rows(weight: Tensor, precision: Precision = Precision()) -> Codes:
    """The nearest codes of weight (N, K), symmetric."""
    weight = weight.double()
    if precision.bits == 8:
        steps = _above_zero(weight.abs().amax(1) / 127)
        return Codes((weight / steps[:, None]).round().clamp(-127, 127).to(torch.int8), steps)
    size, columns = precision.group, weight.shape[1]
    grouped = torch.nn.functional.pad(weight, (0, -columns % size)).reshape(len(weight), -1, size)
    wanted = _best_steps(grouped)
    steps = _above_zero(wanted.amax(1) / 15)
    groups = (wanted / steps[:, None]).round().clamp(1, 15)
    codes = (grouped / (groups * steps[:, None])[:, :, None]).round().clamp(-8, 7)
    return Codes(codes.flatten(1)[:, :columns].to(torch.int8), steps, groups.to(torch.uint8), size)


def _best_steps(grouped: Tensor) -> Tensor:
    """The step (N, G) of every group (N, G, size) with the least squared error among a few clips."""
    largest = grouped.abs().amax(2)
    best, least = largest / 7, torch.full_like(largest, torch.inf)
    for share in _SHRINK:
        steps = _above_zero(largest * share / 7)
        rounded = (grouped / steps[..., None]).round().clamp(-8, 7) * steps[..., None]
        error = (rounded - grouped).square().sum(2)
        best, least = torch.where(error < least, steps, best), torch.minimum(error, least)
    return best


def _above_zero(steps: Tensor) -> Tensor:
    """Rows of zeros get the smallest step of the others, which their biases are on the scale of."""
    above = steps[steps > 0]
    return torch.where(steps > 0, steps, above.min() if len(above) else 1.0)
