"""Uniform settings by name: `rtn-w4`, `gptq-w3g64`, `gptq-w4g128a`, `qronos-w3g64`, …"""

import re
from collections.abc import Mapping

from gossamer.core.errors import PlanError
from gossamer.core.plan import Step
from gossamer.models.hierarchy import Hierarchy
from gossamer.models.packed import Scheme, fitting_group

_NAME = re.compile(r"(rtn|awq|gptq|qronos|signround)-w([2-8])(?:g(32|64|128))?(a)?")


def preset_steps(name: str, hierarchy: Hierarchy) -> tuple[Step, ...]:
    """The compression steps of a preset for one model.

    A name is a technique (`rtn`, `awq`, `gptq`, `qronos`, `signround`), `-w` with 2 to 8 bits, then `g32`, `g64` or
    `g128` (none: one scale for each row), then `a` for asymmetric grids. As in the field's uniform recipes every linear
    layer of the blocks and the projector is quantised, and the head where it has its own tensor; embeddings,
    convolutions, norms, biases, stacked experts and tied heads stay at 16 bits. Where the group does not divide a
    layer's columns, the step for that layer names the largest group that does. Raises `PlanError` for an unknown name,
    or a model without linear layers.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise PlanError(
            f"preset {name!r} is unknown: write (rtn|awq|gptq|qronos|signround)-w{{2..8}}, then g32, g64 or g128 if "
            "wanted, then a for asymmetric, such as rtn-w4, gptq-w3g64, gptq-w4g128, gptq-w4g64a"
        )
    technique, bits, size, asymmetric = match.groups()
    schemes = uniform_schemes(hierarchy, Scheme(int(bits), int(size) if size else None, not asymmetric))
    if not schemes:
        raise PlanError(f"preset {name!r} finds no linear layer in this {hierarchy.family} model")
    return steps_of(hierarchy, schemes, technique)


def uniform_schemes(hierarchy: Hierarchy, scheme: Scheme) -> dict[str, Scheme]:
    """Layer path → scheme: every plain linear layer with its own tensor gets `scheme`, its group made to fit."""
    return {
        layer.path: Scheme(scheme.bits, fitting_group(layer.columns, scheme.group), scheme.symmetric)
        for layer in hierarchy.layers()
        if layer.kind == "linear" and not layer.transposed and layer.tied_to is None
    }


def steps_of(hierarchy: Hierarchy, schemes: Mapping[str, Scheme], technique: str) -> tuple[Step, ...]:
    """The plan steps that put each layer on its scheme: one for a fused set that agrees, else one for each layer."""
    steps = []
    for unit, layers in hierarchy.units().items():
        wanted = {schemes.get(layer.path) for layer in layers}
        first = schemes.get(layers[0].path)
        if first is not None and len(wanted) == 1 and len(layers) == len(hierarchy.select(unit)):
            steps.append(step(unit, technique, first))
        else:
            steps += [step(layer.path, technique, schemes[layer.path]) for layer in layers if layer.path in schemes]
    return tuple(steps)


def step(at: str, technique: str, scheme: Scheme) -> Step:
    """The plan step that quantises the layers at `at` by a technique of this room."""
    settings: dict[str, object] = {"bits": scheme.bits, "group": scheme.group}
    if not scheme.symmetric:
        settings["symmetric"] = False
    return Step.model_validate({"at": at, "do": technique, **settings})
