"""Learned scales and shifts: OmniQuant's learnable equivalent transformation (arXiv 2308.13137).

They stand by themselves, before any quantiser, as they keep the model's function while clipping does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gossamer.compress.calibrate import Stream
from gossamer.compress.links import Link, columns_of, shiftable
from gossamer.compress.passes import Aim, Phase, Place
from gossamer.compress.quantize.blockwise import descend, runs_of
from gossamer.compress.scaling import linked_blocks
from gossamer.compress.soft_rounding import SoftRounding
from gossamer.compress.transform.aimed import grids_of, rounded_inputs
from gossamer.core.errors import DataError, PlanError
from gossamer.core.progress import SILENT
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.hierarchy import Block, Hierarchy, Layer

REFIT = 10
"""Steps after which grids are fitted anew."""


@technique("learned_scales")
@dataclass(frozen=True)
class LearnedScales:
    """Columns times factors that are learnt, and the inverse in what writes their inputs.

    Where both ends have biases, and no more than moves and means lie between, channels are shifted too. Factors start
    at 1 and shifts at 0, so a `smoothquant` step before gives the paper's start. For each block `iterations` steps of
    Adam at `rate` (in units of the factors' logarithms, and of the channels' size) lower the mean squared difference
    that rounding makes to the block's output, on what the unchanged model feeds it. Later steps of the plan say what is
    rounded, and how (inputs too, where their grids need no calibration); grids follow the weights and clip where that
    lowers their squared error. What does not help on all of the data is not kept. Raises `ValueError` for fewer than 1
    iteration, and for a rate that is not positive.
    """

    iterations: int = 100
    rate: float = 1e-3
    phase: ClassVar[Phase] = "transform"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations cannot be {self.iterations}: there is at least 1")
        if not self.rate > 0:
            raise ValueError(f"rate cannot be {self.rate}: it is above 0")

    def transform(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        layers: Sequence[Layer],
        batches: Sequence[Batch],
        aims: Mapping[str, Aim],
    ) -> tuple[str, ...]:
        """See `compress.passes.Transform`.

        Raises `DataError` without calibration data, `PlanError` if no selected layer is rounded later.
        """
        if not batches:
            raise DataError("learned_scales needs calibration data: what blocks give for it is what it learns from")
        wanted = {layer.path: grid for layer, grid in grids_of(layers, aims).items()}
        if not wanted:
            raise PlanError("learned_scales learns for grids, and no later step quantises what it selects: add one")
        stream = Stream(Walk(model, hierarchy, batches[0].inputs), batches)
        left = [layer.path for layer in layers if layer.path in wanted and layer.kind == "linear"]
        for block, here, links, entry in linked_blocks(model, hierarchy, stream, wanted.keys(), SILENT):
            usable = [link for link in links if all(layer in here for layer in link.consumers)]
            if usable:
                roundings = {layer.tensor: SoftRounding(wanted[layer.path]) for layer in here}
                moving = [_Moving.of(link, shiftable(model, stream.walk, entry, link)) for link in usable]
                self._learn(model, stream, block, moving, roundings, aims)
            linked = {layer.path for link in usable for layer in link.consumers}
            left = [path for path in left if path not in linked]
        return tuple(f"{path}: nothing before it can make up for scales; none were learnt" for path in left)

    def _learn(
        self,
        model: nn.Module,
        stream: Stream,
        block: Block,
        moving: Sequence["_Moving"],
        roundings: Mapping[str, SoftRounding],
        aims: Mapping[str, Aim],
    ) -> None:
        """Learns the factors and shifts of a block's links, and folds them."""
        runs = runs_of(stream.batches, stream.entries, [stream.walk.through(entry) for entry in stream.entries])
        unknowns = [unknown for one in moving for unknown in one.unknowns]
        optimiser = torch.optim.Adam(unknowns, self.rate)

        def soft() -> dict[Place, Tensor]:
            found = _moved(model, moving)
            found |= {name: model.get_parameter(name) for name in roundings if name not in found}
            found = {name: roundings[name](value) if name in roundings else value for name, value in found.items()}
            return {(name.removeprefix(f"{block.module}."), None): value for name, value in found.items()}

        def settled() -> tuple[list[tuple[Tensor, Tensor | None]], dict[Place, Tensor]]:
            for rounding in roundings.values():
                rounding.refit()
            return [one.now() for one in moving], soft()

        def move(step: int, slopes: Sequence[Tensor]) -> None:
            for unknown, slope in zip(unknowns, slopes, strict=True):
                unknown.grad = slope
            optimiser.step()
            if step % REFIT == REFIT - 1:
                for rounding in roundings.values():
                    rounding.refit()

        with rounded_inputs(model, block.layers, aims):
            with torch.no_grad():
                start = soft()
            best = descend(
                model.get_submodule(block.module), unknowns, soft, settled, start, runs, self.iterations, move
            )
        for one, (factors, shifts) in zip(moving, best or (), strict=best is not None):
            if shifts is not None:
                one.link.shift(model, shifts)
            one.link.fold(model, factors)


@dataclass(frozen=True, eq=False)
class _Moving:
    """The unknowns of a link: the `logarithms` (channels,) of its factors, and its `shifts` in units of `size`."""

    link: Link
    logarithms: Tensor
    shifts: Tensor | None
    size: float

    @classmethod
    def of(cls, link: Link, size: float) -> "_Moving":
        zeros = torch.zeros(link.channels)
        shifts = zeros.clone().requires_grad_() if size > 0 else None
        return cls(link, zeros.requires_grad_(), shifts, size)

    @property
    def unknowns(self) -> tuple[Tensor, ...]:
        return (self.logarithms,) if self.shifts is None else (self.logarithms, self.shifts)

    @property
    def factors(self) -> Tensor:
        return self.logarithms.exp()

    def now(self) -> tuple[Tensor, Tensor | None]:
        """The present factors and shifts (channels,)."""
        shifts = None if self.shifts is None else self.shifts.detach() * self.size
        return self.factors.detach(), shifts


def _moved(model: nn.Module, moving: Sequence[_Moving]) -> dict[str, Tensor]:
    """The parameters at the ends of links, by name, as `Link.shift` and `Link.fold` would leave them."""
    found: dict[str, Tensor] = {}

    def value(name: str) -> Tensor:
        return found.get(name, model.get_parameter(name))

    for one in moving:
        for consumer, source in zip(one.link.consumers, one.link.sources, strict=True):
            if one.shifts is not None:
                bias, shifts = f"{consumer.module}.bias", columns_of(one.shifts * one.size, source, 0.0)
                found[bias] = value(bias) + value(consumer.tensor) @ shifts.to(value(consumer.tensor))
            found[consumer.tensor] = value(consumer.tensor) * columns_of(one.factors, source).to(value(consumer.tensor))
        producer = model.get_submodule(one.link.producer)
        for kind in ("weight", "bias"):
            parameter, name = producer._parameters.get(kind), f"{one.link.producer}.{kind}"
            if parameter is not None:
                factors = one.factors.to(parameter.device)
                shifted = value(name)
                if kind == "bias" and one.shifts is not None:
                    shifted = shifted - one.shifts.to(parameter.device) * one.size
                found[name] = shifted / factors.reshape(-1, *[1] * (parameter.dim() - 1))
    return found
