"""The units of the search and the choices each of them has.

A unit is the smallest set of layers that takes one setting: a fused set (q/k/v, gate/up, one other matrix) or, for
large models, a whole block. A choice names a scheme for every layer of its unit; bytes are counted as the checkpoint
stores them, so that a container that the public loaders force on a layer is paid for here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gossamer.models.containers import Containers
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.packed import Scheme

Granularity = Literal["layer", "block"]
Assignment = dict[str, Scheme]
"""Layer path → scheme; a path that is not in it stays at 16 bits."""

GRID: tuple[Scheme, ...] = (
    Scheme(2, 32),
    Scheme(2, 64),
    Scheme(3, 32),
    Scheme(3, 64),
    Scheme(4, 32),
    Scheme(4, 64),
    Scheme(5, 64),
    Scheme(6, 64),
    Scheme(8, None),
)
"""The schemes that every linear layer may take, besides 16 bits. Symmetric: packed zero points do not reload."""


@dataclass(frozen=True)
class Choice:
    """One setting of a unit. `bits` and `label` describe the lowest-bit layer; 16 bits has no schemes."""

    label: str
    bits: int
    schemes: tuple[tuple[str, Scheme], ...]
    bytes: int


@dataclass(frozen=True)
class Unit:
    """Layers that share a setting. `choices[0]` leaves them at 16 bits; the others rise in bytes."""

    name: str
    modality: str
    block: int | None
    layers: tuple[Layer, ...]
    choices: tuple[Choice, ...]


def units_of(
    hierarchy: Hierarchy, containers: Containers, granularity: Granularity, grid: Sequence[Scheme] = GRID
) -> tuple[Unit, ...]:
    """Every unit with more than one choice, in the hierarchy's order.

    Convolutions and position embeddings have no low-bit container and are no units. The experts of all blocks form one,
    since the public loaders unpack all of them with one setting. A token embedding may take 8 bits
    (its container's width); where the head shares its tensor, both form one unit, because quantising either unties
    them and the checkpoint then stores two tensors.
    """
    tied = {layer.tied_to: layer for layer in hierarchy.layers() if layer.tied_to is not None}
    units: list[Unit] = []
    for modality in hierarchy.modalities:
        for number, block in enumerate(modality.blocks):
            members = [layer for layer in block.layers if _is_plain(layer)]
            if granularity == "block":
                units.append(_unit(block.path, modality.name, number, members, hierarchy, containers, grid))
            else:
                for name in dict.fromkeys(layer.unit for layer in members):
                    fused = [layer for layer in members if layer.unit == name]
                    units.append(_unit(name, modality.name, number, fused, hierarchy, containers, grid))
        for name in dict.fromkeys(layer.unit for layer in modality.layers):
            members = [layer for layer in modality.layers if layer.unit == name and layer.tied_to is None]
            linear = [layer for layer in members if _is_plain(layer)]
            if linear:
                units.append(_unit(name, modality.name, None, linear, hierarchy, containers, grid))
            for layer in members:
                if layer.kind == "embedding" and modality.name == "embeddings":
                    units.append(_embedding_unit(layer, tied.get(layer.path), modality.name, containers, grid))
    experts = [layer for layer in hierarchy.layers() if layer.index is not None and layer.tensor in containers.stacks]
    if experts:
        tower = experts[0].path.partition(".")[0]
        units.append(_unit(_any_number(experts[0].unit), tower, None, experts, hierarchy, containers, grid))
    return tuple(unit for unit in units if len(unit.choices) > 1)


def _any_number(path: str) -> str:
    """The glob of all paths that differ from this one in numbers."""
    return ".".join("*" if piece.isdigit() else piece for piece in path.split("."))


def _is_plain(layer: Layer) -> bool:
    return layer.kind == "linear" and not layer.transposed


def describe(scheme: Scheme) -> str:
    """`3 bits g64`, `8 bits per channel`, `mxfp4`."""
    if scheme.format != "int":
        return scheme.format
    return f"{scheme.bits} bits " + (f"g{scheme.group}" if scheme.group else "per channel")


def _unit(
    name: str,
    modality: str,
    block: int | None,
    layers: list[Layer],
    hierarchy: Hierarchy,
    containers: Containers,
    grid: Sequence[Scheme],
) -> Unit:
    dense = Choice("16 bits", 16, (), sum(containers.bytes(layer, None) for layer in layers))
    choices: dict[tuple[tuple[str, Scheme], ...], Choice] = {}
    for scheme in grid:
        schemes = [scheme.fitted(hierarchy.grid_columns(layer)) for layer in layers]
        fitted = tuple((layer.path, one) for layer, one in zip(layers, schemes, strict=True))
        size = sum(containers.bytes(layer, one) for layer, one in zip(layers, schemes, strict=True))
        choices.setdefault(fitted, Choice(describe(scheme), scheme.bits, fitted, size))
    ordered = sorted(choices.values(), key=lambda choice: (choice.bytes, choice.bits))
    return Unit(name, modality, block, tuple(layers), (dense, *ordered))


def _embedding_unit(
    layer: Layer, head: Layer | None, modality: str, containers: Containers, grid: Sequence[Scheme]
) -> Unit:
    dense = Choice("16 bits", 16, (), containers.bytes(layer, None))
    eight = Scheme(8, None)
    small = containers.bytes(layer, eight)
    if head is None:
        choice = Choice(describe(eight), 8, ((layer.path, eight),), small)
        return Unit(layer.path, modality, None, (layer,), (dense, choice))
    choices = []
    for scheme in grid:
        fitted = scheme.fitted(head.columns)
        size = small + containers.bytes(head, fitted)
        label = f"embedding 8 bits, head {describe(scheme)}"
        choices.append(Choice(label, scheme.bits, ((layer.path, eight), (head.path, fitted)), size))
    ordered = sorted(choices, key=lambda choice: choice.bytes)
    return Unit(layer.path, modality, None, (layer, head), (dense, *ordered))


def fixed_bytes(dense_bytes: int, units: Sequence[Unit]) -> int:
    """Bytes of everything that no unit holds, of a checkpoint that takes `dense_bytes` at 16 bits."""
    return dense_bytes - sum(unit.choices[0].bytes for unit in units)


def assignment_of(units: Sequence[Unit], chosen: Sequence[int]) -> Assignment:
    """The schemes of all layers when unit u takes its choice number chosen[u]."""
    return {
        path: scheme for unit, index in zip(units, chosen, strict=True) for path, scheme in unit.choices[index].schemes
    }


def choice_in(unit: Unit, assignment: Assignment) -> int:
    """The number of the unit's choice that an assignment makes. Raises `ValueError` where it has no such choice."""
    schemes = tuple((layer.path, assignment[layer.path]) for layer in unit.layers if layer.path in assignment)
    return [choice.schemes for choice in unit.choices].index(schemes)


def total_bytes(units: Sequence[Unit], chosen: Sequence[int]) -> int:
    """Bytes of all units when unit u takes its choice number chosen[u]."""
    return sum(unit.choices[index].bytes for unit, index in zip(units, chosen, strict=True))


def mean_bits(hierarchy: Hierarchy, assignment: Assignment) -> float:
    """Code bits per weight over all linear and embedding layers."""
    layers = [layer for layer in hierarchy.layers() if layer.kind != "conv"]
    total = sum(
        layer.rows * layer.columns * (assignment[layer.path].bits if layer.path in assignment else 16)
        for layer in layers
    )
    return total / max(1, sum(layer.rows * layer.columns for layer in layers))
