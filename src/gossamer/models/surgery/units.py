"""What can be taken out of the blocks of a tower: channels of its MLPs, groups of its attention heads (and experts, see
`experts.py`).

Nothing is looked up by the names of modules. An entry of the config is changed, the model that it describes is built
without memory, and the shapes that differ tell which axes of which tensors belong to the unit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import PlanError
from gossamer.models.hierarchy import Block, Hierarchy, Layer
from gossamer.models.surgery.entries import Edits, Way, built, entries, is_count, shapes_of

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Part:
    """Where a block's units are in one parameter: `positions` int64 (count, width) along dimension `dim` of each."""

    tensor: str
    dim: int
    positions: "Tensor"


@dataclass(frozen=True, eq=False)
class Units:
    """The `count` units of each block of a tower.

    `parts` are by block path, in order; `readers` are the layers whose columns read what the units write, where only
    columns do. `scaled` gives for each entry of the config that grows with the number of units its value for one,
    `fixed` what else must be stated; `listed` tells whether the entries hold a number for each block.
    """

    count: int
    parts: Mapping[str, tuple[Part, ...]]
    readers: Mapping[str, Layer]
    scaled: Mapping[Way, int]
    fixed: Edits
    listed: bool = False

    def edits(self, counts: Sequence[int]) -> dict[Way, Any]:
        """The changes of the config for this many units of each block: one number where it holds one and they agree."""

        def value(each: int) -> Any:
            same = len(set(counts)) == 1 and not self.listed
            return each * counts[0] if same else [each * count for count in counts]

        return {**self.fixed, **{way: value(each) for way, each in self.scaled.items()}}

    def columns(self, path: str) -> "Tensor":
        """int64 (count, width): the columns of a block's reader that read each unit."""
        return next(part.positions for part in self.parts[path] if part.tensor == self.readers[path].tensor)


def tower_of(hierarchy: Hierarchy, path: str) -> tuple[Block, ...]:
    """All blocks of the tower that the block at `path` stands in. Raises `PlanError` for an unknown path."""
    known = {block.path: block.module.rpartition(".")[0] for block in hierarchy.blocks()}
    if path not in known:
        raise PlanError(f"the model has no block {path}: gossamer inspect lists its blocks")
    return tuple(block for block in hierarchy.blocks() if known[block.path] == known[path])


def channels_of(model: "nn.Module", blocks: tuple[Block, ...]) -> Units:
    """The channels of the MLPs of a tower's `blocks`: the most columns of a layer that one entry of the config sets.

    Raises `PlanError` where there is no such entry: stacked experts, widths computed from others.
    """
    known = entries(model.config)
    order = [layer.path for layer in blocks[0].layers]
    widths = sorted({layer.columns for layer in blocks[0].layers if layer.kind == "linear"}, reverse=True)
    # An entry may hold a width for each block; left empty it lets the family compute it, as GPT-2's n_inner does.
    for stated in (True, False):
        for width in widths:
            each = [width] * len(blocks)
            units = [
                found
                for way, value in known.items()
                if (value in (width, each) if stated else value is None)
                if (found := _units(model, blocks, Units(width, {}, {}, {way: 1}, {}, value == each), apart=True))
            ]
            if units:
                return max(units, key=lambda found: order.index(found.readers[blocks[0].path].path))
    raise PlanError(
        f"{_name(blocks)}: channels cannot be removed, no entry of the config sets the width of an MLP alone "
        "in every block"
    )


def heads_of(model: "nn.Module", blocks: tuple[Block, ...]) -> Units:
    """The groups of attention heads of a tower's `blocks`: a key-value head with the query heads that it serves.

    Raises `PlanError` where the config cannot keep the size of a head while their number changes.
    """
    widths = {layer.columns for layer in blocks[0].layers if layer.kind == "linear"}
    for scaled, count, fixed in _head_entries(entries(model.config), widths):
        units = _units(model, blocks, Units(count, {}, {}, scaled, fixed), apart=False)
        if units is not None:
            return units
    raise PlanError(
        f"{_name(blocks)}: heads cannot be removed, no config of this family has fewer heads of the same size"
    )


def _head_entries(known: dict[Way, Any], widths: set[int]) -> Iterator[tuple[dict[Way, int], int, dict[Way, Any]]]:
    """Entries that may count heads: (values for one group, groups, the size of a head stated)."""
    ways = [way for way, value in known.items() if is_count(value) and "head" in way[-1] and way[-1] != "head_dim"]
    pairs = [(query, key) for query in ways for key in ways if query != key and query[:-1] == key[:-1]]
    for query, key in (*pairs, *((way, way) for way in ways)):
        heads, groups = known[query], known[key]
        if heads % groups or groups < 2:
            continue
        way = (*query[:-1], "head_dim")
        sizes = [known[way]] if known.get(way) else sorted({width // heads for width in widths if width % heads == 0})
        for size in sizes:
            yield {query: heads // groups, key: 1 if key != query else heads // groups}, groups, {way: size}


def _units(model: "nn.Module", blocks: tuple[Block, ...], units: Units, apart: bool) -> Units | None:
    """The units whose entries of the config are given, if one less makes this tower's blocks narrower and nothing else.

    Fused matrices have several rows for each unit: `apart` tells that they lie a whole matrix apart, not together.
    """
    import torch

    count = units.count
    if count < 2:
        return None
    less = built(model, units.edits([count - 1] * len(blocks)))
    before, after = shapes_of(model), {} if less is None else shapes_of(less)
    if after.keys() != before.keys() or after == before:
        return None
    same = built(model, units.edits([count] * len(blocks)))
    if same is None or shapes_of(same) != before:
        return None
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    layers = {layer.tensor: layer for block in blocks for layer in block.layers}
    parts: dict[str, list[Part]] = {block.path: [] for block in blocks}
    readers: dict[str, Layer] = {}
    for name, shape in before.items():
        if after[name] == shape:
            continue
        changed = [dim for dim, (a, b) in enumerate(zip(shape, after[name], strict=True)) if a != b]
        block = next((block for block in blocks if name.startswith(f"{block.module}.")), None)
        dim = changed[0]
        fits = shape[dim] * (count - 1) == after[name][dim] * count
        if block is None or len(changed) > 1 or len(shape) > 2 or not fits or name not in parameters:
            return None
        width = shape[dim] // count
        places = torch.arange(shape[dim])
        parts[block.path].append(Part(name, dim, places.view(width, count).T if apart else places.view(count, width)))
        layer = layers.get(name)
        if layer is not None and dim == (0 if layer.transposed else 1):
            if block.path in readers:
                return None
            readers[block.path] = layer
    if readers.keys() != parts.keys() or any(len(found) < 2 for found in parts.values()):
        return None
    return replace(units, parts={path: tuple(found) for path, found in parts.items()}, readers=readers)


def _name(blocks: tuple[Block, ...]) -> str:
    return blocks[0].path.rpartition(".")[0]
