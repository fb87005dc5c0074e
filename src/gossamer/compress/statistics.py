"""Calibration statistics of a layer: the Hessian of its output error, gathered as inputs stream by.

For a layer y = W x the squared output error of a changed weight is `(W - Ŵ) H (W - Ŵ)ᵀ` with H the mean of x xᵀ over
calibration tokens, whatever the weight is: layers with one input share one H. Convolutions are seen as matrices over
unfolded patches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer.compress.factor import Factor, factorise
from gossamer.core.errors import DataError, PlanError

_PATCH_ELEMENTS = 1 << 23
_DOUBLE_COLUMNS = 2048
_STRIP = 256
_ROWS = 2048
_SAMPLE = 512


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration knows about a layer's inputs.

    `hessian` float32 (columns, columns): the mean of x xᵀ over `tokens` input vectors (patches, for convolutions), each
    times what it weighs. `drift` float32 (columns, columns), where it was asked for: the mean of (u - x) xᵀ, u being
    what the unchanged model gives the layer in the place of x. `largest` float32 (columns,): each input's largest
    magnitude. `sample` float32 (about 512 or fewer, columns): every so many-th of the input vectors.
    """

    hessian: Tensor
    tokens: int
    drift: Tensor | None = None
    largest: Tensor | None = None
    sample: Tensor | None = None
    _factors: dict[tuple[float, bool], Factor | None] = field(default_factory=dict, repr=False)

    def factor(self, damping: float, act_order: bool) -> Factor | None:
        """The factorised inverse (see `factorise`), computed once and shared by every bit width and layer of this H."""
        key = (damping, act_order)
        if key not in self._factors:
            self._factors[key] = factorise(self.hessian, damping, act_order)
        return self._factors[key]

    def target(self, weight: Tensor, factor: Factor | None) -> Tensor:
        """The weight (rows, columns) that comes closest on x to what `weight` gives on u; without `drift` itself.

        Ridge regression about `weight`, W + W D (H + λ I)⁻¹, under the damped Hessian behind `factor`, which is one of
        this H. Without one (no damping was enough) it is `weight`, too.
        """
        if self.drift is None or factor is None:
            return weight
        found = torch.empty_like(weight)
        for rows, place in zip(torch.split(weight, _STRIP), torch.split(found, _STRIP), strict=True):
            torch.add(rows, factor.solve(rows @ self.drift), out=place)
        return found

    def loss(self, error: Tensor) -> float:
        """The mean squared output error, summed over outputs, of a weight that is off by `error` (rows, columns)."""
        total = 0.0
        for start in range(0, error.shape[1], _STRIP):  # twice the upper half, once the blocks on the diagonal
            stop = start + _STRIP
            part = error[:, start:stop]
            total += float(((part @ self.hessian[start:stop, start:stop]) * part).sum(dtype=torch.float64))
            if stop < error.shape[1]:
                rest = error[:, stop:] @ self.hessian[stop:, start:stop]
                total += 2 * float((rest * part).sum(dtype=torch.float64))
        return total


class Accumulator:
    """Gathers the statistics of one layer: `add` each batch of its inputs, then `finish`.

    `path` names the layer in errors. Takes `nn.Linear`, transformers' `Conv1D`, `nn.Conv1d` and `nn.Conv2d` without
    channel groups, or the number of columns of a matrix that is no module; raises `PlanError` for others. Memory:
    one (columns, columns) matrix, float64 up to 2,048 columns and float32 beyond.
    """

    def __init__(self, path: str, layer: nn.Module | int) -> None:
        self._path = path
        self._layer = layer
        self._columns = layer if isinstance(layer, int) else _columns(path, layer)
        dtype = torch.float64 if self._columns <= _DOUBLE_COLUMNS else torch.float32
        self._mean = torch.zeros(self._columns, self._columns, dtype=dtype)
        self._drift: Tensor | None = None
        self._largest = torch.zeros(self._columns)
        self._sample, self._apart, self._seen = torch.zeros(0, self._columns), 1, 0
        self._waiting: list[Tensor] = []
        self._differences: list[Tensor] = []
        self.tokens = 0

    def add(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        unchanged: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Counts `inputs` as the layer's forward receives them; beside them, always or never, what it receives in the
        `unchanged` model. `weights` ≥ 0 say what each input vector weighs, None: all alike; not for convolutions.

        `mask` (bool) tells which input vectors are real, such as (batch, positions): those where it is False are
        padding and do not count. For convolutions it covers the batch. Inputs wait until a few thousand vectors are
        there; `DataError` is raised for NaN or infinite ones then, or by `finish`.
        """
        roots = None if weights is None else (weights if mask is None else weights[mask]).reshape(-1, 1).sqrt()
        if unchanged is None:
            for rows in self._rows(inputs, mask):
                self._add_rows(rows, None, roots)
        else:
            for rows, originals in zip(self._rows(inputs, mask), self._rows(unchanged, mask), strict=True):
                self._add_rows(rows, originals, roots)

    def _rows(self, inputs: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        if isinstance(self._layer, (nn.Conv1d, nn.Conv2d)):
            yield from _patches(self._layer, inputs if mask is None else inputs[mask])
        else:
            rows = inputs.reshape(-1, self._columns)
            yield rows if mask is None else rows[mask.reshape(-1)]

    def _add_rows(self, rows: Tensor, unchanged: Tensor | None, roots: Tensor | None) -> None:
        rows = rows.detach().float()
        if len(rows):
            self._largest = torch.maximum(self._largest.to(rows.device), rows.abs().amax(0))
            self._keep(rows)
        enough = sum(map(len, self._waiting)) + len(rows) >= _ROWS
        weighted = rows if roots is None else rows * roots
        # the model may write over an input it has used
        self._waiting.append(weighted if enough or weighted is not rows else rows.clone())
        if unchanged is not None:
            difference = unchanged.detach().float() - rows
            self._differences.append(difference if roots is None else difference.mul_(roots))
        if enough:
            self._fold()

    def _keep(self, rows: Tensor) -> None:
        """Lets every so many-th of all vectors so far be the sample, however they are cut into batches."""
        while len(self._sample) + len(rows) // self._apart > _SAMPLE:
            self._sample = self._sample[::2]
            self._apart *= 2
        mine = rows[-self._seen % self._apart :: self._apart]
        self._sample = torch.cat([self._sample.to(rows.device), mine])
        self._seen += len(rows)

    def _fold(self) -> None:
        """Folds the waiting rows into the running mean. H is symmetric: strips of its upper half are enough."""
        rows = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)
        self._waiting.clear()
        count = len(rows)
        if count == 0:
            return
        self.tokens += count
        self._mean = self._mean.to(rows.device)
        weight = count / self.tokens
        differences = torch.cat(self._differences) if self._differences else None
        self._differences.clear()
        if differences is not None and self._drift is None:
            self._drift = torch.zeros_like(self._mean)
        for start in range(0, self._columns, _STRIP):
            strip = slice(start, start + _STRIP)
            gram = rows[:, strip].T @ rows[:, start:]
            if not bool(torch.isfinite(gram.diagonal()).all()):
                raise DataError(
                    f"the calibration inputs of layer {self._path} hold NaN, infinite or absurdly large values: "
                    "check the model in float32 and the calibration data"
                )
            self._mean[strip, start:].mul_(1 - weight).add_(gram, alpha=weight / count)
            if differences is not None and self._drift is not None:
                self._drift[strip].mul_(1 - weight).add_(differences[:, strip].T @ rows, alpha=weight / count)

    def finish(self) -> Statistics:
        """The statistics of all inputs so far. Raises `DataError` if there were none, or some were not finite."""
        if self._waiting:
            self._fold()
        if self.tokens == 0:
            raise DataError(f"layer {self._path} saw no calibration input: use data that reaches it, or leave it out")
        drift = None if self._drift is None else self._drift.float()
        return Statistics(_mirrored(self._mean.float()), self.tokens, drift, self._largest, self._sample)


def _mirrored(matrix: Tensor) -> Tensor:
    """The symmetric matrix of this upper half, in place."""
    for start in range(0, len(matrix), _STRIP):
        stop = start + _STRIP
        block = matrix[start:stop, start:stop].triu()
        matrix[start:stop, start:stop] = block + block.triu(1).T
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
    return matrix


def _columns(path: str, layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        if layer.groups != 1:
            raise PlanError(
                f"layer {path} is a convolution with channel groups: leave it at 16 bits, or round it by rtn"
            )
        return layer.in_channels * prod(layer.kernel_size)
    if type(layer).__name__ == "Conv1D":
        return cast(Tensor, layer.weight).shape[0]
    raise PlanError(f"layer {path} is a {type(layer).__name__}, which has no Hessian: quantise it by rtn")


def _patches(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Iterator[Tensor]:
    """The input patches a convolution multiplies its weight matrix with, (patches, columns), a few images at a time."""
    flat = isinstance(layer, nn.Conv1d)
    if inputs.dim() == (2 if flat else 3):
        inputs = inputs.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    inputs = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    inputs = inputs.unsqueeze(2) if flat else inputs
    kernel, stride, dilation = (
        ((1, *sizes) if flat else sizes) for sizes in (layer.kernel_size, layer.stride, layer.dilation)
    )
    at_once = _PATCH_ELEMENTS * prod(stride) // (inputs[0].numel() * prod(kernel))
    for images in torch.split(inputs, max(1, at_once)):
        patches = functional.unfold(images, kernel, dilation=dilation, stride=stride)
        yield patches.transpose(1, 2).reshape(-1, patches.shape[1])
