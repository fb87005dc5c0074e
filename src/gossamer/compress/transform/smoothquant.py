"""SmoothQuant: part of the inputs' outliers moves into the weights (arXiv 2211.10438)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gossamer.compress.passes import Aim, Phase
from gossamer.compress.scaling import fold_scales
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import DataError
from gossamer.core.progress import SILENT
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.hierarchy import Hierarchy, Layer

_LEAST = 1e-5  # no factor below this, nor above its inverse


@technique("smoothquant")
@dataclass(frozen=True)
class SmoothQuant:
    """Columns times s_j = max|x_j|^α / max|w_j|^(1-α), and the inverse in what writes their inputs.

    `alpha` in [0, 1] says how much of the difficulty moves from inputs to weights: at 0.5 both have the same largest
    values afterwards. Raises `ValueError` outside. As in the paper, what readers of a norm are given is smoothed;
    with `everywhere` also what linear layers read from each other (v and o, up and down).
    """

    alpha: float = 0.65
    everywhere: bool = False
    phase: ClassVar[Phase] = "transform"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha cannot be {self.alpha:g}: it is a share between 0 and 1")

    def transform(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        layers: Sequence[Layer],
        batches: Sequence[Batch],
        aims: Mapping[str, Aim],
    ) -> tuple[str, ...]:
        """See `compress.passes.Transform`. Raises `DataError` without calibration data."""
        if not batches:
            raise DataError("smoothquant needs calibration data: the largest inputs of each layer come from it")
        wanted = {layer.path: self for layer in layers if layer.kind == "linear"}
        walk = Walk(model, hierarchy, batches[0].inputs)
        left = fold_scales(model, hierarchy, walk, batches, wanted, SILENT, norms_only=not self.everywhere)
        return tuple(f"{path}: nothing before it can make up for scales; not smoothed" for path in left)

    def scales(
        self, weights: Sequence[Tensor], statistics: Sequence[Statistics], sources: Sequence[Tensor], channels: int
    ) -> Tensor | None:
        """See `compress.scaling.Scaling`. Channels without inputs or weights keep the factor 1."""
        inputs, size = weights[0].new_zeros(2, channels)
        for weight, known, source in zip(weights, statistics, sources, strict=True):
            assert known.largest is not None
            read = source >= 0
            inputs.scatter_reduce_(0, source[read], known.largest[read], "amax")
            size.scatter_reduce_(0, source[read], weight.abs().amax(0)[read], "amax")
        factors = inputs**self.alpha / size ** (1 - self.alpha)
        return torch.where((inputs > 0) & (size > 0), factors, 1.0).clamp(_LEAST, 1 / _LEAST)
