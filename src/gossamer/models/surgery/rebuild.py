"""Filling a model that a changed config has built with the tensors of the one that it takes the place of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import PlanError
from gossamer.models.hierarchy import Block, Hierarchy, Layer
from gossamer.models.structure import hierarchy_of

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Reshaped:
    """A smaller model. Tensors that did not change are those of the model it came from, not copies.

    `hierarchy` speaks of blocks by the paths that they had at first, though their modules have other numbers now.
    """

    model: "nn.Module"
    hierarchy: Hierarchy


def adopt(model: "nn.Module", other: "nn.Module") -> None:
    """`model` becomes `other`, one of its family, which is not to be used on its own from then on."""
    model.__class__ = type(other)
    vars(model).clear()
    vars(model).update(vars(other))


def filled(
    model: "nn.Module",
    fresh: Any,
    tensors: Mapping[str, "Tensor"],
    origin: Callable[[str], str],
    hierarchy: Hierarchy,
    kept: Iterable[Block],
) -> Reshaped:
    """`fresh` (on the meta device) with `tensors`, all of its state by name.

    Buffers that are not saved come from `model`, where `origin` gives the name for that of `fresh`. `kept` are the
    blocks of `hierarchy` that `fresh` has, in order. Raises `PlanError` where this family could not be loaded so.
    """
    try:
        fresh.init_weights()  # as loading does, with what that computes of the config
    except Exception as error:
        raise PlanError(f"this family does not load at this size: its initialisation fails ({error})") from error
    fresh.load_state_dict(dict(tensors), strict=True, assign=True)
    for name, buffer in list(fresh.named_buffers()):
        if name not in tensors:
            old = model.get_buffer(origin(name))
            if old.shape != buffer.shape:
                raise PlanError(f"the buffer {origin(name)} depends on what is removed: this family cannot be reshaped")
            owner, _, leaf = name.rpartition(".")
            fresh.get_submodule(owner)._buffers[leaf] = old
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None:
        fresh.generation_config = generation
    return Reshaped(fresh, _named(hierarchy_of(fresh, fresh.config), list(kept)))


def _named(found: Hierarchy, kept: list[Block]) -> Hierarchy:
    """The hierarchy with its blocks under the paths of `kept`, which are the same blocks in the same order."""
    now = [block.path for block in found.blocks()]
    if len(now) != len(kept):
        raise PlanError("too few blocks would be left to recognise this family's structure: keep at least two")
    names = {new: block.path for new, block in zip(now, kept, strict=True)}

    def path(text: str) -> str:
        pieces = text.split(".")
        block = ".".join(pieces[:3])
        return ".".join([names.get(block, block), *pieces[3:]])

    def renamed(layer: Layer) -> Layer:
        tied = path(layer.tied_to) if layer.tied_to else None
        return replace(layer, path=path(layer.path), unit=path(layer.unit), tied_to=tied)

    return found.mapped(renamed, names.__getitem__)
