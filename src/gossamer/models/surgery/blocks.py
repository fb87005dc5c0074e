"""Removing whole blocks."""

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import PlanError
from gossamer.models.hierarchy import Block, Hierarchy
from gossamer.models.surgery.entries import Edits, Way, built, entries, is_count, shapes_of
from gossamer.models.surgery.rebuild import Reshaped, filled
from gossamer.models.widths import FIELD

if TYPE_CHECKING:
    from torch import nn

# A hint at which lists hold numbers of blocks; what decides is what the config then builds.
_NUMBERS = re.compile(r"ind(ex|ic)|idx|layers|blocks")


def drop_blocks(model: "nn.Module", hierarchy: Hierarchy, paths: Collection[str]) -> Reshaped:
    """The model without the blocks at `paths`; `model` is not changed.

    The config's entry that counts the blocks is the one with which the class builds just the tensors that are left,
    and blocks that are built as before; lists with one item for each block lose theirs, lists of block numbers are
    renumbered, and a number of the hidden state that is read elsewhere (LLaVA's `vision_feature_layer`) stays with its
    state. Raises `PlanError` for unknown paths, where no block of a tower would be left, and where no config describes
    the result.
    """
    known = {block.path for block in hierarchy.blocks()}
    unknown = sorted(set(paths) - known)
    if unknown:
        raise PlanError(f"the model has no block {unknown[0]}: gossamer inspect lists its blocks")
    found = Reshaped(model, hierarchy)
    for tower in sorted({_tower(block) for block in hierarchy.blocks() if block.path in paths}):
        found = _drop(found.model, found.hierarchy, tower, set(paths))
    return found


def _tower(block: Block) -> str:
    return block.module.rpartition(".")[0]


def _drop(model: "nn.Module", hierarchy: Hierarchy, tower: str, paths: Collection[str]) -> Reshaped:
    blocks = [block for block in hierarchy.blocks() if _tower(block) == tower]
    left = [number for number, block in enumerate(blocks) if block.path not in paths]
    name = blocks[0].path.rpartition(".")[0]
    if not left:
        raise PlanError(f"{name}: all {len(blocks)} blocks would go; keep at least one")
    number_of = {f"{tower}.{new}": f"{tower}.{old}" for new, old in enumerate(left)}

    def origin(path: str) -> str:
        depth = tower.count(".") + 2
        pieces = path.split(".")
        head = ".".join(pieces[:depth])
        return ".".join([number_of.get(head, head), *pieces[depth:]])

    gone = tuple(f"{block.module}." for block in blocks if block.path in paths)
    state, known = model.state_dict(keep_vars=True), entries(model.config)
    widths: Edits = {} if (FIELD,) not in known else {(FIELD,): _renumbered(known[FIELD,], number_of, gone)}
    for edits in _candidates(known, len(blocks), left):
        fresh = built(model, {**edits, **widths})
        if fresh is None:
            continue
        shapes = shapes_of(fresh)
        sources = {new: origin(new) for new in shapes}
        if sorted(sources.values()) != sorted(old for old in state if not old.startswith(gone)):
            continue
        if any(tuple(state[old].shape) != shapes[new] for new, old in sources.items()):
            continue
        if all(_alike(model.get_submodule(blocks[old].module), fresh.get_submodule(f"{tower}.{new}"), old, new)
               for new, old in enumerate(left)):  # fmt: skip
            kept = [block for block in hierarchy.blocks() if block.path not in paths or _tower(block) != tower]
            return filled(model, fresh, {new: state[old] for new, old in sources.items()}, origin, hierarchy, kept)
    raise PlanError(
        f"{name}: no config of this family describes the model with {len(left)} of these {len(blocks)} blocks; "
        "drop others, or none"
    )


def _renumbered(widths: dict[str, Any], number_of: dict[str, str], gone: tuple[str, ...]) -> dict[str, Any]:
    """The widths of layers (see `widths.py`) without those that are gone, by new names: `number_of` is new → old."""
    renamed = {}
    for name, size in widths.items():
        if not name.startswith(gone):
            new, old = next((pair for pair in number_of.items() if name.startswith(f"{pair[1]}.")), ("", ""))
            renamed[new + name.removeprefix(old)] = size
    return renamed


def _candidates(known: dict[Way, Any], count: int, left: list[int]) -> Iterator[Edits]:
    """The changes of a config that might make a tower of `count` blocks one of those `left`, likely ones first."""
    for way, value in known.items():
        if not is_count(value) or value != count:
            continue
        section = {other: found for other, found in known.items() if other[:-1] == way[:-1]}
        edits: dict[Way, Any] = {way: len(left), **_pointers(known, way[:-1], count, left)}
        numbers: dict[Way, list[int]] = {}
        for other, found in section.items():
            if isinstance(found, (list, tuple)) and len(found) == count:
                edits[other] = [found[old] for old in left]
            elif _holds_numbers(other[-1], found, count):
                numbers[other] = found
        yield {**edits, **{other: _of_blocks(found, left) for other, found in numbers.items()}}
        if numbers and all(min(found) >= left[0] for found in numbers.values()):
            yield {**edits, **{other: _of_outputs(found, left) for other, found in numbers.items()}}


def _holds_numbers(name: str, value: Any, count: int) -> bool:
    if not isinstance(value, (list, tuple)) or not value or _NUMBERS.search(name) is None:
        return False
    return all(isinstance(item, int) and 0 <= item < count for item in value)


def _of_blocks(numbers: list[int], left: list[int]) -> list[int]:
    """Numbers of blocks that are special: those that went are special no more."""
    return [left.index(number) for number in numbers if number in left]


def _of_outputs(numbers: list[int], left: list[int]) -> list[int]:
    """Numbers of blocks whose output is read: where a block went, its input is its output."""
    return [max(new for new, old in enumerate(left) if old <= number) for number in numbers]


def _pointers(known: dict[Way, Any], section: Way, count: int, left: list[int]) -> dict[Way, Any]:
    """The entry beside a part's config that says which of its hidden states is read, 0 being that before all blocks."""
    if not section:
        return {}
    way = (*section[:-1], section[-1].removesuffix("config") + "feature_layer")
    value = known.get(way)

    def moved(number: int) -> int:
        state = number if number >= 0 else number + count + 1
        state = sum(old < state for old in left)
        return state if number >= 0 else state - len(left) - 1

    if isinstance(value, int):
        return {way: moved(value)}
    return {way: [moved(number) for number in value]} if isinstance(value, (list, tuple)) else {}


def _alike(old: "nn.Module", new: "nn.Module", old_number: int, new_number: int) -> bool:
    """Whether two blocks are built alike: their settings are the same, but for the block's own number."""
    pairs = zip(old.named_modules(), new.named_modules(), strict=True)
    return all(
        before_path == after_path
        and type(before) is type(after)
        and all(
            value == settings.get(name) or (value == old_number and settings.get(name) == new_number)
            for settings in (vars(after),)
            for name, value in vars(before).items()
            if not name.startswith("_") and isinstance(value, (bool, int, float, str, list, tuple, type(None)))
        )
        for (before_path, before), (after_path, after) in pairs
    )
