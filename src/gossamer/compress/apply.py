"""Carrying out a plan's compression on a model in memory.

Quantisation runs in execution order: every layer is calibrated on what reaches it through the layers that are already
quantised, those of its own block too, so that later layers make up for earlier ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from gossamer.compress.calibrate import Stream, layers_by_step, pass_through
from gossamer.compress.chain import Assigned, Chain, assign
from gossamer.compress.distill import Heal, Lesson, Parts
from gossamer.compress.guidance import weigh_tokens
from gossamer.compress.passes import BlockRun, Polisher, Rounded
from gossamer.compress.quantize.blockwise import runs_of
from gossamer.compress.scaling import Scaling, fold_scales
from gossamer.compress.statistics import Statistics
from gossamer.compress.structure import selected_blocks
from gossamer.compress.swap import finite_weight, overwrite_weight, replace_weight
from gossamer.core.errors import DataError, PlanError
from gossamer.core.paths import listed
from gossamer.core.plan import Step
from gossamer.core.progress import SILENT, Progress
from gossamer.core.technique import name_of
from gossamer.data.batch import Batch
from gossamer.engine.walk import Entry, Walk
from gossamer.models.hierarchy import Block, Hierarchy, Layer
from gossamer.models.inputs import round_inputs
from gossamer.models.low_rank import LowRank
from gossamer.models.memory import IN_MEMORY, Memory
from gossamer.models.packed import QuantizedTensor
from gossamer.models.structure import read_matrix
from gossamer.models.ties import retied


@dataclass(frozen=True)
class Applied:
    """What was done, by layer path.

    `hierarchy` is the model's as it is now: what is left after blocks and channels went, under the paths of before.
    `tensors` are the weights on grids, `masks` bool (rows, columns) tell which values of pruned weights may be other
    than 0, `low_ranks` are what is added to a weight, all in the processor's memory; `notes` are remarks.
    """

    hierarchy: Hierarchy
    tensors: dict[str, QuantizedTensor]
    notes: list[str]
    masks: dict[str, Tensor] = field(default_factory=dict)
    low_ranks: dict[str, LowRank] = field(default_factory=dict)


def apply_steps(
    model: nn.Module,
    hierarchy: Hierarchy,
    steps: Sequence[Step],
    batches: Sequence[Batch],
    progress: Progress = SILENT,
    memory: Memory = IN_MEMORY,
) -> Applied:
    """Compresses the model as `steps` say, in place; it then computes with the compressed weights.

    `memory` is where the model lives (see `Opened`); codes and masks go there too.

    Transforms, and techniques that scale columns first, change other weights too, which keeps the function. `batches`
    are the calibration data; they may be empty if no technique needs them. Healing learns from the first of them and is
    held to the last quarter. Raises `PlanError` for steps
    that do not fit the model, `DataError` for calibration data that is missing or not finite, `ModelError` for
    weights that are not finite.
    """
    assigned = assign(hierarchy, steps)
    notes: list[str] = []
    healings = _lessons(model, hierarchy, assigned, batches)
    aims = {path: chain.aim for path, chain in assigned.chains.items()}
    for number, technique, at in assigned.whole:
        try:
            if technique.phase == "structure":
                hierarchy = technique.reshape(model, hierarchy, selected_blocks(hierarchy, at), batches)
            elif technique.phase == "transform":
                said = technique.transform(model, hierarchy, hierarchy.select(at), batches, aims)
                notes.extend(f"compression step {number}: {note}" for note in said)
        except PlanError as error:
            raise PlanError(f"compression step {number} ({name_of(technique)} at {at!r}): {error}") from error
    result = Applied(retied(model, hierarchy), {}, notes)
    assigned.check_shapes(result.hierarchy)
    _compress(model, assigned.chains, batches, progress, result, memory)
    for healing in healings:
        _heal(model, healing, progress, result)
    return result


@dataclass(frozen=True)
class _Healing:
    """A healing to come: what the unchanged model does, and where to look."""

    number: int
    technique: Heal
    at: str
    lessons: Sequence[Lesson]
    held_out: Sequence[Lesson]


def _lessons(model: nn.Module, hierarchy: Hierarchy, assigned: Assigned, batches: Sequence[Batch]) -> list[_Healing]:
    found = []
    for number, technique, at in assigned.whole:
        if technique.phase == "heal":
            if len(batches) < 2:
                raise DataError(f"compression step {number}: heal needs calibration data of at least 2 batches")
            lessons = technique.lessons(model, hierarchy, hierarchy.select(at), batches)
            apart = len(batches) - max(1, len(batches) // 4)
            found.append(_Healing(number, technique, at, lessons[:apart], lessons[apart:]))
    return found


def _heal(model: nn.Module, healing: _Healing, progress: Progress, result: Applied) -> None:
    parts = {}
    for layer in result.hierarchy.select(healing.at):
        tensor, low_rank = result.tensors.get(layer.path), result.low_ranks.get(layer.path)
        if tensor is not None:
            parts[layer.path] = Parts(tensor, None, low_rank)
        elif low_rank is not None or layer.path in result.masks:
            dense = read_matrix(model, layer).float()
            rest = dense if low_rank is None else dense - low_rank.to(dense.device).dense()
            parts[layer.path] = Parts(None, rest, low_rank)
    healed = healing.technique.heal(model, result.hierarchy, parts, healing.lessons, healing.held_out, progress)
    for path, part in healed.parts.items():
        if part.tensor is not None:
            result.tensors[path] = part.tensor
        if part.low_rank is not None:
            result.low_ranks[path] = part.low_rank
    told = healed.notes or (f"healing took the held-out loss from {healed.before:.4g} to {healed.after:.4g}",)
    result.notes.extend(f"compression step {healing.number}: {note}" for note in told)


def _compress(
    model: nn.Module,
    chains: Mapping[str, Chain],
    batches: Sequence[Batch],
    progress: Progress,
    result: Applied,
    memory: Memory,
) -> None:
    hierarchy = result.hierarchy
    layers = {layer.path: layer for layer in hierarchy.layers() if layer.path in chains}
    uses = Counter(model.get_parameter(name) for name, _ in model.named_parameters(remove_duplicate=False))
    rounded: dict[str, Rounded] = {}
    unseen: list[str] = []

    def put(layer: Layer, dense: Tensor) -> None:
        alone = uses[model.get_parameter(layer.tensor)] < 2
        (overwrite_weight if alone else replace_weight)(model, layer, dense)

    def held(tensor: QuantizedTensor, layer: Layer) -> QuantizedTensor:
        stored = reshaped(tensor, layer).to("cpu")
        return replace(stored, codes=memory.hold(stored.codes))

    def compress(layer: Layer, statistics: Statistics | None) -> None:
        if not layer.on_grid:
            result.notes.append(f"{layer.path}: left at 16 bits, since its storage has no low-bit form")
            return
        memory.rest()  # what was touched on the way here
        chain, weight = chains[layer.path], finite_weight(model, layer)
        done = chain.run(weight, statistics)
        if isinstance(chain.quantise, Polisher) and statistics is not None and done.tensor is not None:
            rounded[layer.path] = Rounded(weight.clone(), done.tensor, statistics)
        put(layer, done.dense)
        if done.inputs is not None:
            round_inputs(model.get_submodule(layer.module), done.inputs)
        if done.tensor is not None:
            result.tensors[layer.path] = held(done.tensor, layer)
        if done.mask is not None:
            result.masks[layer.path] = memory.hold(done.mask.cpu())
        if done.low_rank is not None:
            result.low_ranks[layer.path] = done.low_rank.to("cpu")
        if layer.kind == "expert" and statistics is None and chain.needs != {"nothing"}:
            unseen.append(layer.path)
        elif layer.kind != "embedding":
            result.notes.extend(f"{layer.path}: {note}" for note in done.notes)
        memory.rest()

    needs = set().union(*(chain.needs for chain in chains.values()))
    if needs <= {"nothing"}:
        for path in progress.track(layers, "compress"):
            compress(layers[path], None)
        return
    if not batches:
        raise DataError("the plan's techniques need calibration data and there is none: name a task and data")
    walk = Walk(model, hierarchy, batches[0].inputs)
    if any(isinstance(chain.quantise, Scaling) for chain in chains.values()):
        wanted = {path: chain.quantise for path, chain in chains.items()}
        left = fold_scales(model, hierarchy, walk, batches, wanted, progress, memory=memory)
        experts = [path for path in left if layers[path].index is not None]
        alone = [path for path in left if path not in experts]
        for names in (*alone, *([listed(experts)] if experts else [])):
            result.notes.append(f"{names}: nothing before it can make up for scales; quantised without")
    steps_layers = layers_by_step(walk, hierarchy)
    guided = [layers[path] for path, chain in chains.items() if chain.guided]
    weights = weigh_tokens(model, hierarchy, guided, batches, memory) if guided else None
    stream = Stream(walk, batches, weights=weights)
    unchanged = Stream(walk, batches, memory) if "both models" in needs else None

    def polish(number: int, entries: Sequence[Entry], targets: Sequence[Any]) -> bool:
        block = walk.stages[number].block
        found = _polished(model, block, rounded, chains, runs_of(batches, entries, targets))
        for path, tensor in found.items():
            put(layers[path], tensor.dequantize())
            result.tensors[path] = held(tensor, layers[path])
        rounded.clear()
        return bool(found)

    for step in progress.track(sorted(steps_layers), "compress block by block"):
        wanted_here = [layer for layer in steps_layers[step] if layer.path in chains]
        pass_through(model, stream, wanted_here, compress, unchanged, polish)
    reached = {layer.path for group in steps_layers.values() for layer in group}
    for path in layers:
        if path not in reached:
            compress(layers[path], None)
            result.notes.append(f"{path}: the calibration data does not reach it; compressed without statistics")
    if unseen:
        result.notes.append(
            f"no calibration token is sent to {listed(unseen)}: rounded to nearest, or scored by weights alone"
        )


def _polished(
    model: nn.Module,
    block: Block,
    rounded: Mapping[str, Rounded],
    chains: Mapping[str, Chain],
    runs: Sequence[BlockRun],
) -> dict[str, QuantizedTensor]:
    """Better roundings of the block's layers, those of one technique together."""
    found: dict[str, QuantizedTensor] = {}
    here = {layer.path: layer for layer in block.layers if layer.path in rounded}
    for technique in dict.fromkeys(chains[path].quantise for path in here):
        assert isinstance(technique, Polisher)
        paths = {
            (layer.tensor.removeprefix(f"{block.module}."), layer.index): path
            for path, layer in here.items()
            if chains[path].quantise == technique
        }
        members = {place: rounded[path] for place, path in paths.items()}
        better = technique.polish(model.get_submodule(block.module), members, runs)
        found |= {paths[place]: tensor for place, tensor in better.items()}
    return found


def reshaped(tensor: QuantizedTensor, layer: Layer) -> QuantizedTensor:
    """A quantised matrix as the weight of `layer`, which may be stored with more dimensions; input-major ones stay."""
    if tensor.shape == layer.shape or layer.transposed:
        return tensor
    return QuantizedTensor(tensor.scheme, layer.shape, tensor.codes, tensor.scales, tensor.zeros)
