"""The numbers that codes may stand for, and the scales that go with them.

`int` are whole numbers with a free 16-bit scale. The others are floats of few bits:

- `fp8`: E4M3 (arXiv 2209.05433), one free 16-bit scale for each row;
- `mxfp4`: E2M1 in groups of 32, whose scale is a power of two (OCP Microscaling Formats specification 1.0);
- `nvfp4`: E2M1 in groups of 16, whose scale is an E4M3 number times one factor for the whole tensor. That factor may be
  any float32; here it is a power of two, so that scales are exact at 16 bits.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Format = Literal["int", "fp8", "mxfp4", "nvfp4"]

E4M3_LARGEST = 448
LEAST_SCALE = 2.0**-24
"""The smallest positive 16-bit float."""

_LEAST_NORMAL = 2.0**-14
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class FloatFormat:
    """`bits` of a code, columns of a `group` (None: whole rows), and the `largest` number a code stands for."""

    bits: int
    group: int | None
    largest: int


FLOATS: dict[Format, FloatFormat] = {
    "fp8": FloatFormat(8, None, E4M3_LARGEST),
    "mxfp4": FloatFormat(4, 32, 6),
    "nvfp4": FloatFormat(4, 16, 6),
}


FORMATS: tuple[Format, ...] = get_args(Format)


def round_(values: Tensor, form: Format) -> Tensor:
    """The nearest numbers of a float format, in place; ties go to the even code, what is too large to the largest."""
    largest = FLOATS[form].largest
    values.clamp_(-largest, largest)
    if form == "fp8":
        return values.copy_(values.to(torch.float8_e4m3fn))
    size = values.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return values.div_(step).round_().mul_(step)


def codes_of(values: Tensor, form: Format) -> Tensor:
    """The codes int8 of numbers of a float format: their bits, sign first, the sign bit repeated where 4 are used."""
    values = values + 0.0  # no negative zeros
    if form == "fp8":
        return values.to(torch.float8_e4m3fn).view(torch.int8)
    size = torch.bucketize(values.abs(), torch.tensor(_E2M1, device=values.device)).to(torch.int8)
    return torch.where(values < 0, size - 8, size)


def values_of(codes: Tensor, form: Format) -> Tensor:
    """The numbers float32 that codes int8 of a float format stand for."""
    if form == "fp8":
        return codes.view(torch.float8_e4m3fn).float()
    table = torch.tensor((*_E2M1, *(-value for value in _E2M1)), device=codes.device)
    return table[(codes & 15).int()]


def tensor_unit(largest: float, form: Format) -> float:
    """The factor of all scales of a tensor whose largest magnitude is given: a power of two, 1 but in `nvfp4`."""
    if form != "nvfp4" or largest <= 0:
        return 1.0
    return max(2.0 ** math.ceil(math.log2(largest / FLOATS[form].largest / E4M3_LARGEST)), LEAST_SCALE * 2**9)


def allowed_scales(scales: Tensor, form: Format = "int", unit: float = 1.0) -> Tensor:
    """Scales (float32, either sign) as those that a format can store, all of which 16-bit floats hold; never 0.

    Powers of two are rounded up, so that no value falls off the end of the grid. 16-bit scales in the coarse range
    below 2^-14 are rounded away from 0 for the same reason. A scale of 0 becomes 1 (`nvfp4`: `unit`).
    """
    if form == "mxfp4":
        powers = torch.exp2(torch.ceil(torch.log2(scales.abs()))).clamp(LEAST_SCALE, 2.0**15)
        return torch.where(scales == 0, 1.0, powers)
    if form == "nvfp4":
        parts = (scales / unit).clamp(2.0**-9, E4M3_LARGEST).to(torch.float8_e4m3fn).float()
        return torch.where(scales == 0, 1.0, parts) * unit
    rounded = scales.half().float()
    coarse = (scales.abs() < _LEAST_NORMAL) & (rounded.abs() < scales.abs())
    rounded = torch.where(coarse, rounded + scales.sign() * LEAST_SCALE, rounded)
    return torch.where(scales == 0, torch.ones_like(scales), rounded)
