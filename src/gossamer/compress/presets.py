"""Uniform settings by name: `rtn-w4`, `gptq-w3g64`, `sparsegpt-2:4+gptq-w4g64`, `rotate+gptq-w4`, …

A name is passes joined by `+`, in the order of the phases. A pass is a technique's name and, after `-`, its setting:
bits and group for quantisers (`w4`, `w3g64`, `w4g128a`) or a float format (`fp8`, `mxfp4`, `nvfp4`), percent or pattern
for pruning (`50`, `2:4`), a rank for factors (`r16`), the percentage that stays for channels, heads and experts (`75`),
for channels and heads with their importance if you like (`75-learned`), for channels `free-75` for more in some blocks
than in others, the numbers for activations (`a8`, `fp8`), a loss for healing or none (`heal`, `heal-on_policy`),
nothing for what needs none; `permute` goes by the pruner that follows it. `w8a8` is short for `w8+activations-a8`,
`w4g64a8s` for `w4g64+activations-a8s`. Structure and transforms change the largest tower only.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.compress.passes import PHASES, Phase
from gossamer.compress.registry import techniques
from gossamer.core.errors import PlanError
from gossamer.core.plan import Step
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.number_formats import FLOATS
from gossamer.models.packed import Scheme

_SETTINGS: dict[Phase, tuple[str, str]] = {
    "structure": (
        r"(?P<free>free-)?(?P<share>\d\d)(?:-(?P<importance>magnitude|taylor2?|learned))?",
        "the percentage that stays and, if you like, the importance, as in 75 or 75-learned, for channels also free-75 "
        "for widths that differ by block",
    ),
    "transform": (r"", "no setting"),
    "decompose": (r"r(?P<rank>\d+)", "a rank, as in r16"),
    "sparsify": (r"(?P<percent>\d\d?)|(?P<pattern>\d+:\d+)", "a percentage or a pattern, as in 50 or 2:4"),
    "quantise": (
        r"w(?P<bits>[2-8])(?:g(?P<group>32|64|128))?(?P<asymmetric>a)?|(?P<format>fp8|mxfp4|nvfp4)",
        "2 to 8 bits, as in w4, w3g64, w4g128a, or fp8, mxfp4, nvfp4",
    ),
    "activations": (
        r"(?:a(?P<bits>[4-8])|(?P<format>fp8|mxfp4|nvfp4))(?P<static>s)?",
        "4 to 8 bits, as in a8, or fp8, mxfp4, nvfp4; an s at the end for one scale for all tokens",
    ),
    "correct": (r"r(?P<rank>\d+)", "a rank, as in r16"),
    "heal": (r"(?P<loss>forward|reverse|on_policy|features)?", "nothing or a loss, as in heal-on_policy"),
}

_SHORT = re.compile(r"(?<=-)(w\d(?:g\d+)?)(a\ds?)(?=\+|$)")
"""Weights and activations in one word."""

SELECTIVE = ("drop_block",)
"""Techniques that want a choice of paths, which no preset can make."""


def preset_steps(name: str, hierarchy: Hierarchy) -> tuple[Step, ...]:
    """The compression steps of a preset for one model.

    As in the field's uniform recipes every linear layer of the blocks and the projector is quantised, and the head
    where it has its own tensor, and every expert; embeddings, convolutions, norms, biases and tied heads stay at 16
    bits. Where the group does not divide a layer's columns, the step for that layer names the largest group that does,
    for experts one that fits all; float formats, whose group is fixed, leave such a layer at 16 bits. Pruning, factors
    and activations leave the head alone, the latter two also experts, since nothing serves these with them, and factors
    what has too few rows or columns for their rank. Raises `PlanError` for an unknown name, passes that are not in the
    order of the phases, or a model without linear layers.
    """
    steps: list[Step] = []
    last = -1
    parts = _SHORT.sub(r"\1+activations-\2", name).split("+")
    for number, part in enumerate(parts):
        technique, _, setting = part.partition("-")
        phase = techniques().get(technique)
        if phase not in _SETTINGS or technique in SELECTIVE:
            raise PlanError(f"preset {name!r}: {_known(technique)}")
        pattern, wanted = _SETTINGS[phase]
        match = re.fullmatch(pattern, setting)
        if match is None:
            raise PlanError(f"preset {name!r}: after {technique} comes {wanted}")
        if PHASES.index(phase) <= last:
            raise PlanError(f"preset {name!r}: {part!r} comes too late, the order is {', '.join(_SETTINGS)}")
        last = PHASES.index(phase)
        setting_of = match.groupdict()
        if technique == "permute":
            setting_of |= _judged_by(name, parts[number + 1 :])
        found = _steps(technique, phase, setting_of, hierarchy)
        if not found:
            raise PlanError(f"preset {name!r} finds no linear layer in this {hierarchy.family} model")
        steps += found
    return tuple(steps)


def _known(technique: str) -> str:
    names = [name for name, phase in techniques().items() if phase in _SETTINGS and name not in SELECTIVE]
    return (
        f"{technique!r} is no technique of a preset; write one of {'|'.join(names)} with its setting, such as rtn-w4, "
        "gptq-w3g64, gptq-w4g64a, sparsegpt-2:4, and join several by +"
    )


def _judged_by(name: str, following: Sequence[str]) -> dict[str, str]:
    """The settings of a permutation for the pruner among the `following` passes."""
    for part in following:
        technique, _, pattern = part.partition("-")
        if techniques().get(technique) == "sparsify" and ":" in pattern:
            return {"pattern": pattern, "score": technique if technique in ("magnitude", "ria") else "wanda"}
    raise PlanError(f"preset {name!r}: permute wants a pruner with a pattern behind it, as in permute+ria-2:4")


def _steps(technique: str, phase: Phase, setting: Mapping[str, str | None], hierarchy: Hierarchy) -> tuple[Step, ...]:
    if phase == "quantise":
        scheme = _scheme(setting)
        return steps_of(hierarchy, uniform_schemes(hierarchy, scheme), technique)
    towers = sorted((part for part in hierarchy.modalities if part.blocks), key=lambda part: -part.parameters)
    if phase == "structure":
        given = {"keep": int(setting["share"] or 0) / 100} | _given(setting, "importance")
        given |= {"widths": "free"} if setting["free"] else {}
        return tuple(
            Step.model_validate({"at": f"{tower.name}.blocks.*", "do": technique, **given}) for tower in towers[:1]
        )
    if phase in ("transform", "heal"):
        chosen = towers[:1] if phase == "transform" else towers
        given = _given(setting, "loss", "pattern", "score")
        return tuple(Step.model_validate({"at": f"{tower.name}.**", "do": technique, **given}) for tower in chosen)
    settings: dict[str, Any] = {}
    rank, scheme = 0, Scheme(8)
    if phase == "activations":
        scheme = _scheme({"group": None, "asymmetric": None, **setting})
        settings = {"format": scheme.format, "bits": scheme.bits, "dynamic": setting["static"] is None}
    elif setting.get("rank"):
        settings["rank"] = rank = int(setting["rank"] or 0)
    elif setting["pattern"]:
        settings["pattern"] = setting["pattern"]
    else:
        settings["sparsity"] = int(setting["percent"] or 0) / 100
    heads = {layer.path for modality in hierarchy.modalities if modality.name == "head" for layer in modality.layers}
    paths = uniform_schemes(hierarchy, scheme).keys() - heads
    if phase != "sparsify":
        paths -= {layer.path for layer in hierarchy.layers() if layer.index is not None}
    paths -= {layer.path for layer in hierarchy.layers() if min(layer.rows, layer.columns) < rank}
    sets = [at for at, layers in _sets(hierarchy).items() if {layer.path for layer in layers} <= paths]
    return tuple(Step.model_validate({"at": at, "do": technique, **settings}) for at in sets)


def _sets(hierarchy: Hierarchy) -> dict[str, tuple[Layer, ...]]:
    """The fused sets by the globs that select them, those of all experts of a block as one."""
    found: dict[str, tuple[Layer, ...]] = {}
    for unit, layers in hierarchy.units().items():
        at = unit if layers[0].index is None else layers[0].path.rsplit(".", 2)[0]
        found[at] = (*found.get(at, ()), *layers)
    return found


def _given(setting: Mapping[str, str | None], *names: str) -> dict[str, Any]:
    return {name: setting[name] for name in names if setting.get(name)}


def _scheme(setting: Mapping[str, str | None]) -> Scheme:
    for form, numbers in FLOATS.items():
        if setting["format"] == form:
            return Scheme(numbers.bits, numbers.group, format=form)
    group = setting["group"]
    return Scheme(int(setting["bits"] or 0), int(group) if group else None, setting["asymmetric"] is None)


def uniform_schemes(hierarchy: Hierarchy, scheme: Scheme) -> dict[str, Scheme]:
    """Layer path → scheme: every plain linear layer with its own tensor, and every expert, gets a `scheme` that fits.

    Layers whose columns a float format's group does not divide are left out.
    """
    fitted = {
        layer.path: (hierarchy.grid_columns(layer), scheme.fitted(hierarchy.grid_columns(layer)))
        for layer in hierarchy.layers()
        if layer.index is not None or (layer.kind == "linear" and not layer.transposed and layer.tied_to is None)
    }
    return {path: found for path, (columns, found) in fitted.items() if not found.group or columns % found.group == 0}


def steps_of(hierarchy: Hierarchy, schemes: Mapping[str, Scheme], technique: str) -> tuple[Step, ...]:
    """The plan steps that put each layer on its scheme: one for a fused set that agrees, or for all experts of a block
    if they do, else one for each layer."""
    steps = []
    for at, layers in _sets(hierarchy).items():
        wanted = {schemes.get(layer.path) for layer in layers}
        first = schemes.get(layers[0].path)
        if first is not None and len(wanted) == 1 and len(layers) == len(hierarchy.select(at)):
            steps.append(step(at, technique, first))
        else:
            steps += [step(layer.path, technique, schemes[layer.path]) for layer in layers if layer.path in schemes]
    return tuple(steps)


def step(at: str, technique: str, scheme: Scheme) -> Step:
    """The plan step that quantises the layers at `at` by a technique of this room."""
    settings: dict[str, object] = {"bits": scheme.bits, "group": scheme.group}
    if not scheme.symmetric:
        settings["symmetric"] = False
    if scheme.format != "int":
        settings["format"] = scheme.format
    return Step.model_validate({"at": at, "do": technique, **settings})
