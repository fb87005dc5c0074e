"""Where the grid lies: the scales and zero points of a weight's rows or groups."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossamer.models.number_formats import allowed_scales, tensor_unit
from gossamer.models.packed import Scheme

Clip = Literal["none", "mse", "percentile"]

STEPS = 16
"""Shrink factors tried for each sign; 80 of them lower no measured loss by more than 1 % at 2 to 4 bits."""

_CHUNK = 1 << 17


@dataclass(frozen=True, eq=False)
class Grid:
    """`scales` float16 (rows, groups); `zeros` int8 (rows, groups), None on symmetric grids."""

    scales: Tensor
    zeros: Tensor | None


def fit_grid(weight: Tensor, scheme: Scheme, clip: Clip, costs: Tensor | None = None, percentile: float = 99.9) -> Grid:
    """The grid of each row or group of `weight` float32 (rows, columns).

    `none` spans all values. `percentile` spans that share of the magnitudes, or of both ends on asymmetric grids. `mse`
    shrinks the span step by step and keeps the least squared error against the scale as it is stored; on symmetric
    grids of whole numbers it tries both signs of the scale. `costs` float32 (columns,) weigh the squared errors of the
    columns. Raises `PlanError` if the group does not divide the columns.
    """
    rows, columns = weight.shape
    groups = scheme.groups(columns)
    grouped = weight.reshape(rows, groups, -1)
    roots = None if costs is None else costs.sqrt().reshape(groups, -1)
    at_once = max(1, _CHUNK // columns)
    unit = tensor_unit(float(weight.abs().max()), scheme.format)
    parts = [_fit(part, scheme, clip, roots, percentile, unit) for part in torch.split(grouped, at_once)]
    scales = torch.cat([part[0] for part in parts]).half()
    if scheme.symmetric:
        return Grid(scales, None)
    return Grid(scales, torch.cat([part[1] for part in parts]).to(torch.int8))


def _fit(
    values: Tensor, scheme: Scheme, clip: Clip, roots: Tensor | None, percentile: float, unit: float
) -> tuple[Tensor, Tensor]:
    low, high = _span(values, scheme, percentile / 100 if clip == "percentile" else 1.0)
    if clip != "mse":
        return _grid_of(low, high, scheme, unit)
    shrinks = torch.linspace(1.0, 0.35 if scheme.bits <= 4 else 0.6, STEPS, device=values.device).reshape(-1, 1, 1)
    scales, zeros = _grid_of(low * shrinks, high * shrinks, scheme, unit)
    if scheme.symmetric and scheme.format == "int":
        scales, zeros = torch.cat([scales, -scales]), torch.cat([zeros, zeros])
    negative = -values
    errors = [_error(values, negative, *tried, scheme, roots) for tried in zip(scales, zeros, strict=True)]
    best = torch.stack(errors).argmin(0, keepdim=True)
    return scales.gather(0, best)[0], zeros.gather(0, best)[0]


def _span(values: Tensor, scheme: Scheme, share: float) -> tuple[Tensor, Tensor]:
    """The range to cover, (rows, groups) each. It always includes 0, and is even on symmetric grids."""
    if scheme.symmetric:
        high = values.abs().amax(-1) if share == 1 else values.abs().quantile(share, -1)
        return -high, high
    if share == 1:
        low, high = torch.aminmax(values, dim=-1)
    else:
        low, high = values.quantile(1 - share, -1), values.quantile(share, -1)
    return low.clamp_max(0), high.clamp_min(0)


def _grid_of(low: Tensor, high: Tensor, scheme: Scheme, unit: float) -> tuple[Tensor, Tensor]:
    """Rounded scales and zero points that spread the codes over [low, high]: half a step beyond an even range."""
    scale = allowed_scales((high - low) / (scheme.high - scheme.low), scheme.format, unit)
    if scheme.symmetric:
        return scale, torch.zeros_like(scale)
    return scale, (scheme.low - low / scale).round().clamp(scheme.low, scheme.high)


def _error(
    values: Tensor, negative: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme, roots: Tensor | None
) -> Tensor:
    """The root of the (weighted) squared error of each group. `negative` are the values negated."""
    scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1)
    codes = values / scale
    if scheme.symmetric:
        codes = scheme.round_(codes)
    else:
        codes.round_().add_(zero).clamp_(scheme.low, scheme.high).sub_(zero)
    error = torch.addcmul(negative, codes, scale, out=codes)
    if roots is not None:
        error.mul_(roots)
    return torch.linalg.vector_norm(error, dim=-1)
