"""Equalisation: scales move between layers so that quantisation loses less, while the model's function stays."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from gossamer.compress.calibrate import Stream, collect, layers_by_step
from gossamer.compress.links import Link, LinkFinder
from gossamer.compress.statistics import Statistics
from gossamer.core.progress import Progress
from gossamer.data.batch import Batch
from gossamer.engine.walk import Entry, Walk
from gossamer.models.hierarchy import Block, Hierarchy, Layer
from gossamer.models.memory import IN_MEMORY, Memory
from gossamer.models.structure import read_matrix


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the channels of a link: its `path`, its `weight` (rows, columns), the `statistics` of its
    inputs, and in `source` (columns,) the channel behind each column, -1 for columns that stay as they are."""

    path: str
    weight: Tensor
    statistics: Statistics
    source: Tensor


@runtime_checkable
class Scaling(Protocol):
    """A technique that wants its layers' input columns scaled before it quantises them."""

    def scales(self, readers: Sequence[Reader], channels: int) -> Tensor | None:
        """The factors (channels,) for the columns of the readers' weights, None to leave them alone."""
        ...


def fold_scales(
    model: nn.Module,
    hierarchy: Hierarchy,
    walk: Walk,
    batches: Sequence[Batch],
    assigned: Mapping[str, object],
    progress: Progress,
    norms_only: bool = False,
    memory: Memory = IN_MEMORY,
) -> list[str]:
    """Scales the layers whose technique is a `Scaling`, block by block, wherever what writes their inputs can make up
    for it; the model computes what it computed. Returns the paths that no link reaches: they stay as they are. So do,
    with `norms_only`, layers that read another layer's channels rather than a norm's. `memory`, where the model lives,
    rests after each block."""
    stream = Stream(walk, batches, memory)
    left = [path for path, technique in assigned.items() if isinstance(technique, Scaling)]
    for _, wanted, links, _ in linked_blocks(model, hierarchy, stream, set(left), progress):
        statistics = collect(model, stream, wanted)
        for link in links:
            passed_by = norms_only and model.get_parameter(f"{link.producer}.weight").dim() > 1
            if passed_by or _fold(model, link, statistics, assigned):
                left = [path for path in left if path not in {layer.path for layer in link.consumers}]
    return left


def linked_blocks(
    model: nn.Module, hierarchy: Hierarchy, stream: Stream, paths: Collection[str], progress: Progress
) -> Iterator[tuple[Block, tuple[Layer, ...], list[Link], Entry]]:
    """Each block with its layers at `paths`, if it has any, and all its links, while `stream` stands at its door.

    The entry, one row's where rows can go by themselves, is what the links were seen on.

    What is changed in between, the batches meet when they go on.
    """
    walk = stream.walk
    finder = LinkFinder(model, walk, stream.batches[0].inputs)
    for step in progress.track(sorted(layers_by_step(walk, hierarchy)), "scale block by block"):
        if step >= 0:
            stage = walk.stages[step]
            # No link reaches an expert (see `find_links`), so nothing need be known of it.
            wanted = tuple(layer for layer in stage.block.layers if layer.path in paths and layer.index is None)
            if wanted:
                yield stage.block, wanted, *finder.at(step)
        if not stream.last:
            stream.advance()
        stream.memory.rest()


def _fold(model: nn.Module, link: Link, statistics: Mapping[str, Statistics], assigned: Mapping[str, object]) -> bool:
    """Folds the scales of one link, if all its consumers are of one technique that wants them."""
    techniques = {assigned.get(layer.path) for layer in link.consumers}
    technique = next(iter(techniques))
    if len(techniques) > 1 or not isinstance(technique, Scaling):
        return False
    if any(layer.path not in statistics for layer in link.consumers):
        return False
    readers = []
    for layer, source in zip(link.consumers, link.sources, strict=True):
        weight = read_matrix(model, layer).float()
        readers.append(Reader(layer.path, weight, statistics[layer.path], source.to(weight.device)))
    factors = technique.scales(readers, link.channels)
    if factors is not None:
        link.fold(model, factors)
    return True
