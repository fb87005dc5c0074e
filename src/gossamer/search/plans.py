"""Between assignments and plans."""

from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.core.plan import Step
from gossamer.models.hierarchy import Hierarchy
from gossamer.models.packed import Scheme, fitting_group
from gossamer.search.units import Assignment, Unit


def step(at: str, technique: str, scheme: Scheme) -> Step:
    """The plan step that quantises the layers at `at`."""
    extra: dict[str, Any] = {} if scheme.symmetric else {"symmetric": False}
    return Step(at=at, do=technique, bits=scheme.bits, group=scheme.group, **extra)  # type: ignore[call-arg]


def steps_of(hierarchy: Hierarchy, units: Sequence[Unit], assignment: Assignment, technique: str) -> tuple[Step, ...]:
    """The steps that make an assignment: one for each unit whose layers agree, else one for each layer."""
    steps = []
    for unit in units:
        schemes = [assignment.get(layer.path) for layer in unit.layers]
        first = schemes[0]
        selected = {layer.path for layer in hierarchy.select(unit.name)}
        if first is not None and all(s == first for s in schemes) and selected == {layer.path for layer in unit.layers}:
            steps.append(step(unit.name, technique, first))
        else:
            pairs = zip(unit.layers, schemes, strict=True)
            steps += [step(layer.path, technique, scheme) for layer, scheme in pairs if scheme is not None]
    return tuple(steps)


def uniform_assignment(hierarchy: Hierarchy, scheme: Scheme) -> Assignment:
    """The usual uniform setting: every linear layer of the blocks, the projector and an untied head at `scheme`.

    Embeddings, convolutions and tied heads stay at 16 bits, as in the field's uniform recipes. Where the group does
    not divide a layer's columns the largest divisor below it is taken.
    """
    return {
        layer.path: Scheme(scheme.bits, fitting_group(layer.columns, scheme.group), scheme.symmetric)
        for layer in hierarchy.layers()
        if layer.kind == "linear" and not layer.transposed and layer.tied_to is None
    }


def mean_bits(hierarchy: Hierarchy, assignment: Mapping[str, Scheme]) -> float:
    """Code bits per weight over all linear and embedding layers."""
    layers = [layer for layer in hierarchy.layers() if layer.kind != "conv"]
    total = sum(
        layer.rows * layer.columns * (assignment[layer.path].bits if layer.path in assignment else 16)
        for layer in layers
    )
    return total / max(1, sum(layer.rows * layer.columns for layer in layers))
