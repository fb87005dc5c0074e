"""What happens to one layer: at most one pass of each phase, in the order of the phases.

The weight W becomes U V + S: `decompose` takes out U V, `sparsify` and `quantise` work on what is left, `correct` adds
to U V what makes up for their error. `activations` settles how the inputs are rounded. Which steps of a plan reach a
layer, and whether they go together, is settled before any work starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.compress.passes import (
    PHASES,
    Aim,
    Corrector,
    Decomposer,
    Guided,
    InputRounder,
    Needs,
    Phase,
    Polisher,
    Quantizer,
    Sparsifier,
    usable,
)
from gossamer.compress.registry import techniques
from gossamer.compress.statistics import Statistics
from gossamer.compress.structure import selected_blocks
from gossamer.core.errors import PlanError
from gossamer.core.plan import Step
from gossamer.core.technique import build
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.inputs import InputGrid
from gossamer.models.low_rank import LowRank
from gossamer.models.packed import QuantizedTensor

LAYER_PHASES: tuple[Phase, ...] = ("decompose", "sparsify", "quantise", "activations", "correct")
"""The phases of techniques that work on one layer's weight at a time."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """A weight after its chain.

    `dense` float32 (rows, columns) is what the layer computes with, all parts together. `tensor` is the part on a grid,
    `mask` bool (rows, columns) tells which values of the part that is not of low rank may be other than 0, `low_rank`
    is the part of low rank, `inputs` how the layer's inputs are rounded; None where there is none.
    """

    dense: Tensor
    tensor: QuantizedTensor | None
    mask: Tensor | None
    low_rank: LowRank | None
    inputs: InputGrid | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Chain:
    """The passes over one layer."""

    decompose: Decomposer | None = None
    sparsify: Sparsifier | None = None
    quantise: Quantizer | None = None
    activations: InputRounder | None = None
    correct: Corrector | None = None

    def __iter__(self) -> Iterator[Any]:
        return (found for phase in LAYER_PHASES if (found := getattr(self, phase)) is not None)

    @property
    def needs(self) -> set[Needs]:
        """What its passes want to know of calibration."""
        return {found.needs for found in self}

    @property
    def guided(self) -> bool:
        """Whether one of its passes wants tokens to weigh differently."""
        return any(found.guided for found in self if isinstance(found, Guided))

    @property
    def aim(self) -> Aim:
        """What it will round the layer to."""
        weight = None if self.quantise is None else self.quantise.scheme
        return Aim(weight, None if self.activations is None else self.activations.grid(None))

    def run(self, weight: Tensor, statistics: Statistics | None) -> Compressed:
        """The passes on `weight` (rows, columns). Raises what they raise."""
        original = usable(weight)
        rest: Tensor | None = original
        low_rank = mask = tensor = None
        notes: list[str] = []
        if self.decompose is not None:
            parts = self.decompose.decompose(original, statistics)
            low_rank, rest, mask = parts.low_rank, parts.rest, parts.mask
            notes.extend(parts.notes)
        if self.sparsify is not None and rest is not None:
            sparse = self.sparsify.sparsify(rest, statistics)
            rest, mask = sparse.weight, sparse.mask
            notes.extend(sparse.notes)
        if self.quantise is not None and rest is not None:
            quantised = self.quantise.quantize(rest, statistics, mask)
            notes.extend(quantised.notes)
            tensor, rest = quantised.tensor, quantised.tensor.dequantize()
        inputs = self.activations.grid(statistics) if self.activations is not None else None
        if self.activations is not None and inputs is None:
            notes.append("its inputs are not rounded: calibration shows none from which their scale could be known")
        dense = torch.zeros_like(original) if rest is None else rest
        if low_rank is not None:
            dense = dense + low_rank.dense()
        if self.correct is not None:
            added = self.correct.correct(original - dense, statistics)
            dense = dense + added.dense()
            low_rank = added if low_rank is None else low_rank.joined(added)
        return Compressed(dense, tensor, mask, low_rank, inputs, tuple(notes))


@dataclass(frozen=True)
class Assigned:
    """A plan's steps on one model: `chains` by layer path; `whole` are the techniques on groups of layers or blocks.

    `whole` holds (step number from 1, technique, path glob) in the order of the phases.
    """

    chains: Mapping[str, Chain]
    whole: tuple[tuple[int, Any, str], ...]

    @property
    def needs_data(self) -> bool:
        """Whether any technique asks for calibration data."""
        return bool(self.whole) or any(chain.needs - {"nothing"} for chain in self.chains.values())

    def check_shapes(self, hierarchy: Hierarchy) -> None:
        """Raises `PlanError` if a layer, as it is in `hierarchy` now, does not fit what is to be done to it."""
        for layer in hierarchy.layers():
            for technique in self.chains.get(layer.path, ()):
                _check_shape(technique, layer, f"after its structure has changed, layer {layer.path}")


def assign(hierarchy: Hierarchy, steps: Sequence[Step]) -> Assigned:
    """What each step does, and to which layers. Of several steps of one phase that select a layer the last one holds.

    Raises `PlanError` for a step that selects nothing, an unknown technique or setting, steps on one layer that are
    not in the order of the phases or undo each other, and for a fused set whose members differ.
    """
    chains: dict[str, dict[str, Any]] = {}
    reached: dict[str, int] = {}
    whole: list[tuple[int, Any, str]] = []
    for number, step in enumerate(steps, 1):
        phase = techniques().get(step.do)
        technique = build(step.do, step.settings)
        if phase is None:
            raise PlanError(f"compression step {number}: {step.do} is no technique of compression")
        selected = hierarchy.select(step.at)
        if not selected:
            raise PlanError(f"compression step {number}: {step.at!r} selects no layer; gossamer inspect lists them")
        for layer in selected:
            before = PHASES[reached.get(layer.path, 0)]
            if PHASES.index(phase) < reached.get(layer.path, 0):
                raise PlanError(
                    f"compression step {number}: {step.do} ({phase}) comes too late for {layer.path}, which an earlier "
                    f"step has taken to {before}; the order is {', '.join(PHASES)}"
                )
            reached[layer.path] = PHASES.index(phase)
            if phase in LAYER_PHASES:
                chain = chains.setdefault(layer.path, {})
                chain[phase] = technique
                _check(number, step, layer, chain, technique)
        if phase not in LAYER_PHASES:
            _check_whole(f"compression step {number} ({step.do} at {step.at!r})", phase, hierarchy, step.at, selected)
            whole.append((number, technique, step.at))
    made = {path: Chain(**chain) for path, chain in chains.items()}
    for name, members in hierarchy.units().items():
        if len({made.get(layer.path) for layer in members}) > 1:
            raise PlanError(f"the layers of {name} run as one matrix and must share a setting: give them one step")
    whole.sort(key=lambda entry: PHASES.index(entry[1].phase))
    return Assigned(made, tuple(whole))


def _check(number: int, step: Step, layer: Layer, chain: Mapping[str, Any], technique: Any) -> None:
    """Raises `PlanError` for a technique that cannot serve the layer or would undo what an earlier one does to it."""
    _check_shape(technique, layer, f"compression step {number} ({step.do} at {step.at!r}), layer {layer.path}")
    decompose, sparsify, quantise = (chain.get(phase) for phase in ("decompose", "sparsify", "quantise"))
    where = f"compression step {number} ({step.do} at {step.at!r})"
    if decompose is not None and not decompose.leaves_rest and (sparsify is not None or quantise is not None):
        raise PlanError(
            f"{where}: nothing of {layer.path} is left for it, an earlier step turns the whole weight into factors; "
            "let that step keep a rest"
        )
    if decompose is not None and decompose.leaves_zeros and sparsify is not None:
        raise PlanError(f"{where}: an earlier step has already set values of {layer.path} to zero; leave one out")
    if isinstance(quantise, Polisher) and (decompose is not None or "correct" in chain):
        raise PlanError(
            f"{where}: {layer.path} would be rounded together with its block, which leaves no room for factors; "
            "quantise by gptq or qronos instead"
        )
    if "activations" in chain:
        if quantise is None or layer.kind != "linear" or layer.transposed:
            raise PlanError(
                f"{where}: the inputs of {layer.path} cannot be rounded, as formats store that beside the quantised "
                "weight of a linear layer only; quantise it in an earlier step, or select other layers"
            )
        if decompose is not None or "correct" in chain:
            raise PlanError(
                f"{where}: {layer.path} cannot have factors and rounded inputs, as factors are served as an adapter, "
                "which would see the inputs unrounded; leave one out"
            )
    zeros = sparsify is not None or (decompose is not None and decompose.leaves_zeros)
    if zeros and isinstance(quantise, Polisher) and not quantise.keeps_zeros:
        raise PlanError(
            f"{where}: it would not keep the zeros of {layer.path} that an earlier step makes; quantise by gptq instead"
        )


def _check_whole(where: str, phase: Phase, hierarchy: Hierarchy, at: str, layers: Sequence[Layer]) -> None:
    """Raises `PlanError` for a technique on blocks that selects none."""
    if phase == "structure":
        try:
            selected_blocks(hierarchy, at)
        except PlanError as error:
            raise PlanError(f"{where}: {error}") from error
    inside = {layer for block in hierarchy.blocks() for layer in block.layers if layer.kind == "linear"}
    if phase == "transform" and inside.isdisjoint(layers):
        raise PlanError(f"{where}: it works on the linear layers of blocks and none is selected; as in language.**")


def _check_shape(technique: Any, layer: Layer, where: str) -> None:
    try:
        technique.check(layer.rows, layer.columns)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from error
