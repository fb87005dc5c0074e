"""Uniform settings by name: `rtn-w4`, `gptq-w3g64`, `gptq-w4g128a`, …"""

import re

from gossamer.core.errors import PlanError
from gossamer.core.plan import Step
from gossamer.models.hierarchy import Hierarchy
from gossamer.models.packed import Scheme, fitting_group

_NAME = re.compile(r"(rtn|gptq)-w([2-8])(?:g(32|64|128))?(a)?")


def preset_steps(name: str, hierarchy: Hierarchy) -> tuple[Step, ...]:
    """The compression steps of a preset for one model.

    A name is `rtn` or `gptq`, `-w` with 2 to 8 bits, then `g32`, `g64` or `g128` (none: one scale for each row), then
    `a` for asymmetric grids. As in the field's uniform recipes every linear layer of the blocks and the projector is
    quantised, and the head where it has its own tensor; embeddings, convolutions, norms, biases, stacked experts and
    tied heads stay at 16 bits. Where the group does not divide a layer's columns, the step for that layer names the
    largest group that does. Raises `PlanError` for an unknown name, or a model without linear layers.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise PlanError(
            f"preset {name!r} is unknown: write (rtn|gptq)-w{{2..8}}, then g32, g64 or g128 if wanted, then a for "
            "asymmetric, such as rtn-w4, gptq-w3g64, gptq-w4g128, gptq-w4g64a"
        )
    technique, bits, size, asymmetric = match.groups()
    wanted = int(size) if size else None
    steps: dict[str, Step] = {}
    for unit, layers in hierarchy.units().items():
        chosen = [
            layer for layer in layers if layer.kind == "linear" and not layer.transposed and layer.tied_to is None
        ]
        for layer in chosen:
            at = unit if len(chosen) == len(layers) == len(hierarchy.select(unit)) else layer.path
            group = fitting_group(layer.columns, wanted)
            steps[at] = step(at, technique, Scheme(int(bits), group, not asymmetric))
    if not steps:
        raise PlanError(f"preset {name!r} finds no linear layer in this {hierarchy.family} model")
    return tuple(steps.values())


def step(at: str, technique: str, scheme: Scheme) -> Step:
    """The plan step that quantises the layers at `at` by a technique of this room."""
    settings: dict[str, object] = {"bits": scheme.bits, "group": scheme.group}
    if not scheme.symmetric:
        settings["symmetric"] = False
    return Step.model_validate({"at": at, "do": technique, **settings})
