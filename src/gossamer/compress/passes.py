"""The words that all techniques of this room share: when a pass runs, what it wants to know, what it hands back.

A plan's steps on one layer run in the order of their phases: `structure` (whole blocks, heads, channels go),
`transform` (the model's function stays), `decompose` (a matrix of low rank takes over part of the weight, the rest goes
on), `sparsify` (single weights become zero), `quantise` (weights go on a grid), `activations` (so do what layers
compute with), `correct` (a matrix of low rank makes up for part of the error), `heal` (what is left is trained). A
technique says its phase in the class attribute `phase`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from gossamer.compress.statistics import Statistics
from gossamer.core.errors import ModelError
from gossamer.data.batch import Batch
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.inputs import InputGrid
from gossamer.models.low_rank import LowRank
from gossamer.models.packed import LARGEST_WEIGHT, QuantizedTensor, Scheme

Phase = Literal["structure", "transform", "decompose", "sparsify", "quantise", "activations", "correct", "heal"]
PHASES: tuple[Phase, ...] = get_args(Phase)

Needs = Literal["nothing", "inputs", "both models"]
"""What a technique wants to know of calibration: nothing, statistics of its layers' inputs, or statistics that tell the
inputs behind layers already changed from those that the unchanged model gives in their place."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight on its grid: `tensor` stands for `weight` (rows, columns). `notes` tell what did not go as asked."""

    weight: Tensor
    tensor: QuantizedTensor
    statistics: Statistics | None
    notes: tuple[str, ...] = ()

    @cached_property
    def loss(self) -> float:
        """The relative squared error (see `relative_loss`), computed only where it is asked for."""
        error = self.tensor.dequantize().neg_().add_(self.weight)  # one matrix besides the weight
        return relative_loss(error, self.weight, self.statistics)


@dataclass(frozen=True, eq=False)
class Sparse:
    """A weight with zeros: `weight` float32 (rows, columns), 0 wherever `mask` bool (rows, columns) is False.

    It stands for `original` (rows, columns); `loss` and `notes` as in `Quantized`.
    """

    original: Tensor
    weight: Tensor
    mask: Tensor
    statistics: Statistics | None
    notes: tuple[str, ...] = ()

    @cached_property
    def loss(self) -> float:
        """The relative squared error."""
        return relative_loss(self.original - self.weight, self.original, self.statistics)


@dataclass(frozen=True, eq=False)
class Decomposed:
    """`low_rank` + `rest`, float32 (rows, columns); no rest where the matrix of low rank takes over the whole weight.

    `mask` bool (rows, columns) is False where the rest is 0 and shall stay so, None for a full rest. `loss` is that of
    the sum, `notes` as in `Quantized`.
    """

    low_rank: LowRank
    rest: Tensor | None
    mask: Tensor | None
    loss: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aim:
    """What later passes round a layer to: the grid of its `weight`, and that of its `inputs`; None where they do not.

    Grids of inputs that calibration has still to settle are None too.
    """

    weight: Scheme | None
    inputs: InputGrid | None


class Transform(Protocol):
    """Changes weights so that later passes lose less, while the model computes what it computed."""

    phase: ClassVar[Phase] = "transform"

    def transform(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        layers: Sequence[Layer],
        batches: Sequence[Batch],
        aims: Mapping[str, Aim],
    ) -> tuple[str, ...]:
        """Changes the weights of `layers` (and of what writes their inputs), in place; says what did not go as asked.

        `batches` are the calibration data, `aims` tell by path what is still to be rounded. Raises `PlanError` where
        the model's build does not allow it.
        """
        ...


class Decomposer(Protocol):
    """Writes a weight as a matrix of low rank, with or without a rest, which may hold zeros to be kept."""

    phase: ClassVar[Phase] = "decompose"

    @property
    def leaves_rest(self) -> bool: ...

    @property
    def leaves_zeros(self) -> bool: ...

    @property
    def needs(self) -> Needs: ...

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` for a weight of this shape that it cannot serve."""
        ...

    def decompose(self, weight: Tensor, statistics: Statistics | None) -> Decomposed:
        """The parts of `weight` float32 (rows, columns), which is not touched."""
        ...


class Sparsifier(Protocol):
    """Sets single weights to zero, and may change those that stay."""

    phase: ClassVar[Phase] = "sparsify"

    @property
    def needs(self) -> Needs: ...

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` for a weight of this shape that it cannot serve."""
        ...

    def sparsify(self, weight: Tensor, statistics: Statistics | None) -> Sparse:
        """The sparse form of `weight` float32 (rows, columns), which is not touched."""
        ...


class Quantizer(Protocol):
    """Puts one weight on a grid."""

    phase: ClassVar[Phase] = "quantise"

    @property
    def needs(self) -> Needs: ...

    @property
    def scheme(self) -> Scheme:
        """The grid's kind."""
        ...

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` for a weight of this shape that it cannot serve."""
        ...

    def quantize(self, weight: Tensor, statistics: Statistics | None, mask: Tensor | None = None) -> Quantized:
        """The quantised form of `weight` float32 (rows, columns), exactly 0 wherever `mask` bool is False."""
        ...


class InputRounder(Protocol):
    """Says how a layer's inputs are rounded."""

    phase: ClassVar[Phase] = "activations"

    @property
    def needs(self) -> Needs: ...

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` for a weight of this shape that it cannot serve."""
        ...

    def grid(self, statistics: Statistics | None) -> InputGrid | None:
        """The grid of inputs with these statistics; None where they do not settle one."""
        ...


class Corrector(Protocol):
    """Makes up for part of a layer's error by a small addition."""

    phase: ClassVar[Phase] = "correct"

    @property
    def needs(self) -> Needs: ...

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` for a weight of this shape that it cannot serve."""
        ...

    def correct(self, error: Tensor, statistics: Statistics | None) -> LowRank:
        """What to add to a weight that is off by `error` = wanted - present, float32 (rows, columns)."""
        ...


@dataclass(frozen=True, eq=False)
class Rounded:
    """One layer of a block: `weight` float32 (rows, columns) as it was, what it was rounded to, and its inputs."""

    weight: Tensor
    tensor: QuantizedTensor
    statistics: Statistics


@dataclass(frozen=True)
class BlockRun:
    """One batch at a block: the call, the unchanged model's output, and the real tokens (None: all)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor
    mask: Tensor | None


Place = tuple[str, int | None]
"""Where a weight is in a block: the parameter's name, and its number if the parameter stacks several weights."""


@runtime_checkable
class Guided(Protocol):
    """A technique that may want statistics in which tokens weigh as much as the predictions hang on them."""

    @property
    def guided(self) -> bool: ...


@runtime_checkable
class Polisher(Protocol):
    """A quantiser that betters the roundings of a block's layers together, once all of them are rounded.

    `keeps_zeros` tells whether the zeros of pruned layers are still zeros then.
    """

    keeps_zeros: ClassVar[bool]

    def polish(
        self, block: nn.Module, layers: Mapping[Place, Rounded], runs: Sequence[BlockRun]
    ) -> dict[Place, QuantizedTensor]:
        """Better roundings by the layers' places in the block; empty if none was found.

        The block's own parameters hold the present roundings and are not changed.
        """
        ...


def relative_loss(error: Tensor, weight: Tensor, statistics: Statistics | None) -> float:
    """The squared error of a layer's output, or of the weight without statistics, as a share of the whole: [0, ∞).

    `error` and `weight` (rows, columns). Takes as long as gathering the statistics of a few thousand inputs.
    """
    if statistics is not None:
        return _share(statistics.loss(error), statistics.loss(weight))
    return _share(float(error.square().sum(dtype=torch.float64)), float(weight.square().sum(dtype=torch.float64)))


def usable(weight: Tensor) -> Tensor:
    """`weight` as float32, never touched by what follows.

    Raises `ModelError` if it is no matrix, or holds values that are not finite or too large for 16-bit scales.
    """
    if weight.dim() != 2 or weight.numel() == 0:
        raise ModelError(f"a weight of shape {tuple(weight.shape)} cannot be compressed: it must be a matrix")
    weight = weight.detach().float()
    low, high = torch.aminmax(weight)
    largest = float(torch.maximum(high, -low))
    if not largest <= LARGEST_WEIGHT:
        raise ModelError(
            f"the weight holds values of magnitude {largest:g}: finite ones up to {LARGEST_WEIGHT:g} can be compressed"
        )
    return weight


def _share(part: float, whole: float) -> float:
    return max(part, 0.0) / whole if whole > 0 else 0.0
