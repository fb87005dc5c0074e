"""The experts of a tower's mixtures: what goes of a model when experts go."""

from typing import TYPE_CHECKING

from gossamer.core.errors import PlanError
from gossamer.models.hierarchy import Block
from gossamer.models.surgery.entries import Way, built, entries, is_count, shapes_of
from gossamer.models.surgery.units import Part, Units

if TYPE_CHECKING:
    from torch import nn


def experts_of(model: "nn.Module", blocks: tuple[Block, ...]) -> Units:
    """The experts in each of a tower's `blocks` that has any: matrices in stacks, rows of the router and its vectors.

    They are counted by the entry of the config with which, made one less, just such tensors lose one. Raises
    `PlanError` where there are no stacked experts or no such entry.
    """
    import torch

    owners = {layer.tensor: block.path for block in blocks for layer in block.layers if layer.index is not None}
    tower = blocks[0].path.rpartition(".")[0]
    if not owners:
        raise PlanError(f"{tower}: experts cannot be removed, its blocks have no stacked experts")
    counts = {len(model.get_parameter(name)) for name in owners}
    count = min(counts)
    places = torch.arange(count).unsqueeze(1)
    ways = [way for way, value in entries(model.config).items() if is_count(value) and counts == {value}]
    for way in ways if count > 1 else ():
        parts: dict[str, list[Part]] = {path: [] for path in dict.fromkeys(owners.values())}
        changed = _changed(model, way, count)
        for name in changed:
            path = next((block.path for block in blocks if name.startswith(f"{block.module}.")), "")
            parts.setdefault(path, []).append(Part(name, 0, places))
        if owners.keys() <= changed and parts.keys() == set(owners.values()):
            return Units(count, {path: tuple(found) for path, found in parts.items()}, {}, {way: 1}, {})
    raise PlanError(f"{tower}: experts cannot be removed, no entry of the config counts those of every block alone")


def _changed(model: "nn.Module", way: Way, count: int) -> set[str]:
    """The tensors whose first dimension the entry sets; none if it sets anything else."""
    less = built(model, {way: count - 1})
    before, after = shapes_of(model), {} if less is None else shapes_of(less)
    if after.keys() != before.keys():
        return set()
    changed = {name for name, shape in before.items() if after[name] != shape}
    one_less = all(before[name] == (count, *after[name][1:]) and after[name][0] == count - 1 for name in changed)
    return changed if one_less else set()
