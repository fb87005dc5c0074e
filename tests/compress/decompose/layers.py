"""Random layers whose inputs differ in strength and go together, and a measure of their output error from scratch."""

import torch
from torch import Tensor

from gossamer.compress.statistics import Statistics


def inputs(seed: int, columns: int, tokens: int = 400) -> Tensor:
    """Input vectors (tokens, columns)."""
    draw = torch.Generator().manual_seed(seed + 1000)
    mixing = torch.randn(columns, columns, generator=draw) * torch.rand(columns, generator=draw).square() * 3
    return torch.randn(tokens, columns, generator=draw) @ mixing + torch.randn(columns, generator=draw)


def statistics_of(seen: Tensor) -> Statistics:
    """What calibration on these input vectors knows."""
    hessian = seen.T @ seen / len(seen)
    return Statistics((hessian + hessian.T) / 2, len(seen))


def layer(seed: int, rows: int = 12, columns: int = 48, tokens: int = 400) -> tuple[Tensor, Statistics]:
    """A weight (rows, columns) without structure, and its statistics."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return weight, statistics_of(inputs(seed, columns, tokens))


def output_loss(error: Tensor, weight: Tensor, seen: Tensor) -> float:
    """The relative squared error of the outputs, float64, from the input vectors themselves."""
    seen = seen.double()
    return float((seen @ error.double().T).square().sum() / (seen @ weight.double().T).square().sum())
