"""Channel permutation: what feeds a layer is put in an order in which n:m pruning keeps more (RIA, ICLR 2024).

Only channels that never leave their block change places: an MLP's between its layers, an attention head's values
between the value and the output projection. So the order is paid for by nothing at run time. What the residual stream
feeds stays as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.compress.calibrate import Stream, collect
from gossamer.compress.links import TOLERANCE, Link, LinkFinder
from gossamer.compress.passes import Aim, Phase
from gossamer.compress.prune.magnitude import Magnitude
from gossamer.compress.prune.permutation import find_permutation, retained
from gossamer.compress.prune.ria import Ria
from gossamer.compress.prune.wanda import Wanda
from gossamer.compress.swap import finite_weight
from gossamer.core.errors import DataError, PlanError
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.engine.walk import Entry, Walk
from gossamer.models.hierarchy import Block, Hierarchy, Layer
from gossamer.models.surgery import Part, Units, channels_of, tower_of

_PRUNERS: dict[str, type[Magnitude | Wanda | Ria]] = {"magnitude": Magnitude, "wanda": Wanda, "ria": Ria}


@technique("permute")
@dataclass(frozen=True)
class Permute:
    """Reorders channels so that pruning to `pattern` keeps more of the score of the layers that read them.

    `score` names the pruner by whose scores that is judged, best the one that follows. `pattern` "n:m" is that of
    `ToSparsity`. Layers whose columns cannot change places stay as they are. Raises `ValueError` for
    a pattern that is none.
    """

    pattern: str = "2:4"
    score: Literal["magnitude", "wanda", "ria"] = "ria"

    phase: ClassVar[Phase] = "transform"

    def __post_init__(self) -> None:
        _PRUNERS[self.score](pattern=self.pattern)

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
            raise DataError("permute needs calibration data: how large each column's input is comes from it")
        pruner = _PRUNERS[self.score](pattern=self.pattern)
        assert pruner.groups is not None  # since it has a pattern
        kept, width = pruner.groups
        wanted = {layer.path for layer in layers if layer.kind == "linear" and not layer.transposed}
        walk = Walk(model, hierarchy, batches[0].inputs)
        stream, finder = Stream(walk, batches), LinkFinder(model, walk, batches[0].inputs)
        units = _channels(model, hierarchy, [stage.block for stage in walk.stages])
        shares = []
        while not stream.last:
            stream.advance()
            block = walk.stages[stream.step].block
            if wanted.isdisjoint(layer.path for layer in block.layers):
                continue
            links, entry = finder.at(stream.step)
            found = _movable(model, walk, entry, units.get(block.path), links, wanted, width)
            statistics = collect(model, stream, [one.reader for one in found])
            for one in found:
                scores, _ = pruner.scores(finite_weight(model, one.reader), statistics[one.reader.path])
                shares.append(one.improve(model, scores.cpu(), kept, width))
        if not shares:
            return ("no selected layer reads channels that can change places: nothing was permuted",)
        before, after = (sum(share) / len(shares) for share in zip(*shares, strict=True))
        return (
            f"{self.pattern} keeps {after:.1%} of the score of the {len(shares)} layers whose columns can change "
            f"places, {before:.1%} in their stored order; {len(wanted) - len(shares)} layers stay as they are",
        )


@dataclass(frozen=True, eq=False)
class _Movable:
    """Channels that `reader` reads, with all that they consist of; each may change places within its run of `run`."""

    reader: Layer
    parts: tuple[Part, ...]
    run: int

    @property
    def columns(self) -> Tensor:
        """int64 (runs, run, width): the columns that read each channel."""
        positions = next(part.positions for part in self.parts if part.tensor == self.reader.tensor)
        return positions.reshape(-1, self.run, positions.shape[1])

    def fits(self, width: int) -> bool:
        """Whether each run lies in whole groups of `width` neighbouring columns, in order."""
        columns = self.columns
        neighbours = columns[:, :1] + torch.arange(self.run)[:, None]
        return self.run % width == 0 and torch.equal(columns, neighbours) and not bool((columns[:, 0] % width).any())

    def improve(self, model: nn.Module, scores: Tensor, kept: int, width: int) -> tuple[float, float]:
        """Puts the channels in a better order, in place; the shares of `scores` (rows, columns) kept before and after.

        Heads that share values share their order.
        """
        orders = []
        for number, columns in enumerate(self.columns):
            those = scores[:, columns].movedim(2, 1).reshape(-1, self.run)
            orders.append(find_permutation(those, kept, width).order + number * self.run)
        order = torch.cat(orders)
        reorder(model, self.parts, order)
        columns = self.columns.flatten(0, 1)
        ordered = scores.clone()
        ordered[:, columns] = scores[:, columns[order]]
        return retained(scores, kept, width), retained(ordered, kept, width)


def reorder(model: nn.Module, parts: Sequence[Part], order: Tensor) -> None:
    """Puts channel `order[k]` in the place of channel k, int64 (channels,), in every part, in place."""
    with torch.no_grad():
        for part in parts:
            parameter = model.get_parameter(part.tensor)
            index = torch.arange(parameter.shape[part.dim])
            index[part.positions.flatten()] = part.positions[order].flatten()
            parameter.copy_(parameter.index_select(part.dim, index.to(parameter.device)))


def _channels(model: nn.Module, hierarchy: Hierarchy, blocks: Sequence[Block]) -> dict[str, Units]:
    """Block path → the MLP channels of its tower, for towers that have such."""
    found: dict[str, Units] = {}
    tried: set[str] = set()
    for block in blocks:
        if block.path not in tried:
            tower = tower_of(hierarchy, block.path)
            tried |= {member.path for member in tower}
            try:
                units = channels_of(model, tower)
            except PlanError:
                continue
            found |= dict.fromkeys(units.parts, units)
    return found


def _movable(
    model: nn.Module,
    walk: Walk,
    entry: Entry,
    units: Units | None,
    links: Sequence[Link],
    wanted: set[str],
    width: int,
) -> list[_Movable]:
    """What can change places in the block at whose door a batch stands, at most once for each of the `wanted` layers.

    It is tried out: the longest runs in which any order leaves the block's output as it is are taken.
    """
    block = walk.stages[entry.stage].block
    output = _output(walk, entry)
    found: dict[str, _Movable] = {}
    for one in _candidates(model, block, units, links):
        new = one.reader.path in wanted and one.reader.path not in found
        if new and one.fits(width) and _holds(model, walk, entry, one, output):
            found[one.reader.path] = one
    return list(found.values())


def _candidates(model: nn.Module, block: Block, units: Units | None, links: Sequence[Link]) -> Iterator[_Movable]:
    if units is not None:
        yield _Movable(units.readers[block.path], units.parts[block.path], units.count)
    for link in links:
        producer = model.get_submodule(link.producer)
        if len(link.consumers) > 1 or not isinstance(producer, nn.Linear):
            continue
        reader, source = link.consumers[0], link.sources[0]
        if bool((source < 0).any()):
            continue
        readings = source.bincount()
        channels = readings.nonzero()[:, 0]
        if len(source) % len(channels) or bool((readings[channels] != len(source) // len(channels)).any()):
            continue
        columns = source.argsort(stable=True).reshape(len(channels), -1)
        written = [f"{link.producer}.{name}" for name, value in producer.named_parameters(recurse=False)]
        parts = (*(Part(name, 0, channels[:, None]) for name in written), Part(reader.tensor, 1, columns))
        for run in range(len(channels), 1, -1):
            if len(channels) % run == 0:
                yield _Movable(reader, parts, run)


def _holds(model: nn.Module, walk: Walk, entry: Entry, one: _Movable, output: Tensor) -> bool:
    """Whether the block's `output` stays as it is when channels change places at random within their runs."""
    draw = torch.Generator().manual_seed(0)
    runs = len(one.columns)
    order = torch.cat([torch.randperm(one.run, generator=draw) + number * one.run for number in range(runs)])
    reorder(model, one.parts, order)
    changed = _output(walk, entry)
    reorder(model, one.parts, order.argsort())
    return float((changed - output).abs().max()) <= TOLERANCE * float(output.abs().max())


def _output(walk: Walk, entry: Entry) -> Tensor:
    output = walk.through(entry)
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
