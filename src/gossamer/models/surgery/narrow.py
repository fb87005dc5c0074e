"""Removing channels, head groups or experts from every block of a tower."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gossamer.core.errors import PlanError
from gossamer.models.hierarchy import Hierarchy
from gossamer.models.surgery.entries import built, shapes_of
from gossamer.models.surgery.rebuild import Reshaped, filled
from gossamer.models.surgery.units import Units

if TYPE_CHECKING:
    from torch import Tensor, nn


def narrow(model: "nn.Module", hierarchy: Hierarchy, units: Units, keep: Mapping[str, "Tensor"]) -> Reshaped:
    """The model with only the units `keep` int64 (kept,) of each block, by block path; `model` is not changed.

    Raises `PlanError` unless every block that has units keeps equally many, at least one, and where no config describes
    the result.
    """
    from torch import nn

    counts = {len(numbers) for numbers in keep.values()}
    if keep.keys() != units.parts.keys() or len(counts) != 1:
        raise PlanError("one config has one width: every block of the tower must keep equally many units")
    count = counts.pop()
    if not 1 <= count <= units.count:
        raise PlanError(f"{count} of {units.count} units cannot be kept: at least one is needed")
    tensors = dict(model.state_dict(keep_vars=True))
    for path, parts in units.parts.items():
        for part in parts:
            old = tensors[part.tensor]
            places = part.positions[keep[path]]
            # Positions run along the axis in its own order: first of each unit, second of each, for fused matrices.
            order = places.flatten().sort().values.to(old.device)
            new = old.detach().index_select(part.dim, order)
            tensors[part.tensor] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    fresh = built(model, units.edits(count))
    if fresh is None or shapes_of(fresh) != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise PlanError(f"no config of this family describes the model with {count} of {units.count} units")
    return filled(model, fresh, tensors, lambda name: name, hierarchy, hierarchy.blocks())
