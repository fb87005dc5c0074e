"""The units of the search and the choices each of them has.

A unit is the smallest set of layers that takes one setting: a fused set (q/k/v, gate/up, one other matrix) or, for
large models, a whole block. A choice names a scheme for every layer of its unit; bytes are counted as the checkpoint
stores them, so that a container that the public loaders force on a layer is paid for here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gossamer.models.containers import Containers
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.packed import Scheme

Granularity = Literal["layer", "block"]
Costs = tuple[float, ...]
"""Amounts of resources that are limited: bytes first, then what else is."""

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

EIGHT = Scheme(8, None)
"""What a token embedding may take: its container's width."""

Serves = Callable[[Containers, Layer, Scheme], bool]
"""Whether the runtime at hand runs a layer on a grid (see `runtimes.py`)."""


def _any(_containers: Containers, _layer: Layer, _scheme: Scheme) -> bool:
    return True


@dataclass(frozen=True)
class Choice:
    """One setting of a unit. `bits` and `label` describe the lowest-bit layer; 16 bits has no schemes.

    `others` is what it takes of further resources than bytes (see `limits.py`).
    """

    label: str
    bits: int
    schemes: tuple[tuple[str, Scheme], ...]
    bytes: int
    others: tuple[float, ...] = ()

    @property
    def costs(self) -> Costs:
        """What it takes of every resource, bytes first."""
        return (self.bytes, *self.others)


@dataclass(frozen=True)
class Unit:
    """Layers that share a setting. `choices[0]` leaves them at 16 bits; the others rise in bytes."""

    name: str
    modality: str
    block: int | None
    layers: tuple[Layer, ...]
    choices: tuple[Choice, ...]


def units_of(
    hierarchy: Hierarchy,
    containers: Containers,
    granularity: Granularity,
    grid: Sequence[Scheme] = GRID,
    serves: Serves = _any,
) -> tuple[Unit, ...]:
    """Every unit with more than one choice, in the hierarchy's order.

    Choices are made of the schemes in `grid` that the runtime `serves`.

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
                units.append(_unit(block.path, modality.name, number, members, hierarchy, containers, grid, serves))
            else:
                for name in dict.fromkeys(layer.unit for layer in members):
                    fused = [layer for layer in members if layer.unit == name]
                    units.append(_unit(name, modality.name, number, fused, hierarchy, containers, grid, serves))
        for name in dict.fromkeys(layer.unit for layer in modality.layers):
            members = [layer for layer in modality.layers if layer.unit == name and layer.tied_to is None]
            linear = [layer for layer in members if _is_plain(layer)]
            if linear:
                units.append(_unit(name, modality.name, None, linear, hierarchy, containers, grid, serves))
            for layer in members:
                if layer.kind == "embedding" and modality.name == "embeddings":
                    units.append(_embedding_unit(layer, tied.get(layer.path), modality.name, containers, grid, serves))
    experts = [layer for layer in hierarchy.layers() if layer.index is not None and layer.tensor in containers.stacks]
    if experts:
        tower, name = experts[0].path.partition(".")[0], _any_number(experts[0].unit)
        units.append(_unit(name, tower, None, experts, hierarchy, containers, grid, serves))
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
    serves: Serves,
) -> Unit:
    dense = Choice("16 bits", 16, (), sum(containers.bytes(layer, None) for layer in layers))
    choices: dict[tuple[tuple[str, Scheme], ...], Choice] = {}
    for scheme in grid:
        fitted = served(hierarchy, layers, scheme, containers, serves)
        size = sum(containers.bytes(layer, fitted.get(layer.path)) for layer in layers)
        choice = Choice(describe(scheme), scheme.bits, tuple(fitted.items()), size)
        choices.setdefault(choice.schemes, choice)
    choices.pop((), None)
    ordered = sorted(choices.values(), key=lambda choice: (choice.bytes, choice.bits))
    return Unit(name, modality, block, tuple(layers), (dense, *ordered))


def served(
    hierarchy: Hierarchy, layers: Sequence[Layer], scheme: Scheme, containers: Containers, serves: Serves = _any
) -> dict[str, Scheme]:
    """Layer path → `scheme` fitted to its columns, of the fused sets among the layers that are served as a whole."""
    fitted = {layer.path: scheme.fitted(hierarchy.grid_columns(layer)) for layer in layers}
    left = {layer.unit for layer in layers if not serves(containers, layer, fitted[layer.path])}
    return {layer.path: fitted[layer.path] for layer in layers if layer.unit not in left}


def _embedding_unit(
    layer: Layer,
    head: Layer | None,
    modality: str,
    containers: Containers,
    grid: Sequence[Scheme],
    serves: Serves,
) -> Unit:
    dense = Choice("16 bits", 16, (), containers.bytes(layer, None))
    small = containers.bytes(layer, EIGHT)
    if not serves(containers, layer, EIGHT):
        return Unit(layer.path, modality, None, (layer,), (dense,))
    if head is None:
        choice = Choice(describe(EIGHT), 8, ((layer.path, EIGHT),), small)
        return Unit(layer.path, modality, None, (layer,), (dense, choice))
    choices = []
    for scheme in grid:
        fitted = scheme.fitted(head.columns)
        if not serves(containers, head, fitted):
            continue
        size = small + containers.bytes(head, fitted)
        label = f"embedding 8 bits, head {describe(scheme)}"
        choices.append(Choice(label, scheme.bits, ((layer.path, EIGHT), (head.path, fitted)), size))
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


def total_costs(units: Sequence[Unit], chosen: Sequence[int]) -> Costs:
    """What all units take of every resource when unit u takes its choice number chosen[u]."""
    each = (unit.choices[index].costs for unit, index in zip(units, chosen, strict=True))
    return tuple(map(sum, zip(*each, strict=True)))


def least_costs(units: Sequence[Unit]) -> Costs:
    """The least that all units can take of every resource, each for itself."""
    each = ([choice.costs for choice in unit.choices] for unit in units)
    return tuple(map(sum, zip(*(map(min, zip(*costs, strict=True)) for costs in each), strict=True)))


TOLERANCE = 1e-9
"""Rounding of sums of fractions, as a share of a resource's room; bytes are whole and have none."""


def fits(units: Sequence[Unit], chosen: Sequence[int], room: Costs) -> bool:
    """Whether the choices take no more than `room` of any resource."""
    size, *others = total_costs(units, chosen)
    return size <= room[0] and all(
        cost <= most + TOLERANCE * abs(most) for cost, most in zip(others, room[1:], strict=True)
    )


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
