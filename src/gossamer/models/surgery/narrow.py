"""Removing channels, head groups or experts from the blocks of a tower."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import PlanError
from gossamer.models.hierarchy import Hierarchy
from gossamer.models.surgery.entries import Shapes, built, shapes_of
from gossamer.models.surgery.rebuild import Reshaped, filled
from gossamer.models.surgery.units import Units
from gossamer.models.widths import FIELD, class_with_widths

if TYPE_CHECKING:
    from torch import Tensor, nn


def narrow(model: "nn.Module", hierarchy: Hierarchy, units: Units, keep: Mapping[str, "Tensor"]) -> Reshaped:
    """The model with only the units `keep` int64 (kept,) of each block, by block path; `model` is not changed.

    Where blocks keep different numbers of units and the family's config cannot say so, the model is of the class in
    `modeling_gossamer.py` that extends its own. Raises `PlanError` unless every block of the tower keeps at least one
    unit, and where nothing describes the result.
    """
    from torch import nn

    if keep.keys() != units.parts.keys():
        raise PlanError("what stays must be said of every block of the tower")
    counts = [len(keep[path]) for path in units.parts]
    if not 1 <= min(counts) <= max(counts) <= units.count:
        raise PlanError(f"{min(counts)} of {units.count} units cannot be kept: at least one is needed")
    tensors = dict(model.state_dict(keep_vars=True))
    changed: Shapes = {}
    for path, parts in units.parts.items():
        for part in parts:
            old = tensors[part.tensor]
            places = part.positions[keep[path]]
            # Positions run along the axis in its own order: first of each unit, second of each, for fused matrices.
            order = places.flatten().sort().values.to(old.device)
            new = old.detach().index_select(part.dim, order)
            tensors[part.tensor] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            changed[part.tensor] = tuple(tensors[part.tensor].shape)
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for fresh in _described(model, units, counts, changed):
        if fresh is not None and shapes_of(fresh) == wanted:
            return filled(model, fresh, tensors, lambda name: name, hierarchy, hierarchy.blocks())
    sizes = " and ".join(str(count) for count in sorted(set(counts)))
    raise PlanError(f"no config of this family describes the model with {sizes} of {units.count} units")


def _described(model: "nn.Module", units: Units, counts: list[int], changed: Shapes) -> Iterator[Any | None]:
    """The models that may have `counts` units in the blocks, those that need no code beside the checkpoint first."""
    yield built(model, units.edits(counts))
    kind = class_with_widths(type(model).__name__)
    if len(set(counts)) > 1 and kind is not None and issubclass(kind, type(model)):
        sizes = {name.removesuffix(".weight"): list(shape) for name, shape in changed.items() if len(shape) == 2}
        yield built(model, {(FIELD,): {**getattr(model.config, FIELD, {}), **sizes}}, kind)
