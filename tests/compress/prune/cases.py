"""Random layers to prune, and masks found the naive way."""

import numpy as np
import torch
from torch import Tensor

from gossamer.compress.prune import Magnitude, Obr, Ria, SparseGpt, Wanda
from gossamer.compress.statistics import Statistics

EVERY = (Magnitude, Wanda, Ria, SparseGpt, Obr, lambda *args: Obr(*args, mask="sparsegpt"))
CALIBRATED = EVERY[1:]
COMPENSATING = EVERY[3:]


def layer(seed: int, rows: int = 12, columns: int = 96, tokens: int = 400) -> tuple[Tensor, Statistics]:
    """A weight and the statistics of correlated inputs of unlike sizes."""
    weight, inputs = weight_and_inputs(seed, rows, columns, tokens)
    hessian = inputs.T @ inputs / tokens
    return weight, Statistics((hessian + hessian.T) / 2, tokens)


def weight_and_inputs(seed: int, rows: int, columns: int, tokens: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw)
    mixing = torch.randn(columns, columns, generator=draw) * torch.rand(columns, generator=draw).square() * 3
    return weight, torch.randn(tokens, columns, generator=draw) @ mixing + torch.randn(columns, generator=draw)


def naive_mask(scores: np.ndarray, removed: int, width: int | None = None) -> np.ndarray:
    """True where a value stays: each row, or each `width` neighbours of one, loses its `removed` lowest."""
    mask = np.ones(scores.shape, bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], width or scores.shape[1]):
            part = scores[row, start : start + (width or scores.shape[1])]
            mask[row, start + np.argsort(part, kind="stable")[:removed]] = False
    return mask
