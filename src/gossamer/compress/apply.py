"""Carrying out a plan's compression on a model in memory.

Quantisation runs in execution order: every layer is calibrated on what reaches it through the layers that are already
quantised, those of its own block too, so that later layers make up for earlier ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gossamer.compress.calibrate import Stream, layers_by_step, pass_through, token_mask
from gossamer.compress.chain import Assigned, Chain, assign
from gossamer.compress.passes import BlockRun, Polisher, Rounded, judged
from gossamer.compress.scaling import Scaling, fold_scales
from gossamer.compress.statistics import Statistics
from gossamer.compress.swap import finite_weight, overwrite_weight, replace_weight
from gossamer.core.errors import DataError
from gossamer.core.plan import Step
from gossamer.core.progress import SILENT, Progress
from gossamer.data.batch import Batch
from gossamer.engine.walk import Entry, Walk
from gossamer.models.hierarchy import Block, Hierarchy, Layer
from gossamer.models.low_rank import LowRank
from gossamer.models.packed import QuantizedTensor


@dataclass(frozen=True)
class Applied:
    """What was done, by layer path.

    `tensors` are the weights on grids, `masks` bool (rows, columns) tell which values of pruned weights may be other
    than 0, `low_ranks` are what is added to a weight, `losses` each layer's relative output error on calibration data;
    `notes` are remarks.
    """

    tensors: dict[str, QuantizedTensor]
    losses: dict[str, float]
    notes: list[str]
    masks: dict[str, Tensor] = field(default_factory=dict)
    low_ranks: dict[str, LowRank] = field(default_factory=dict)


def apply_steps(
    model: nn.Module,
    hierarchy: Hierarchy,
    steps: Sequence[Step],
    batches: Sequence[Batch],
    progress: Progress = SILENT,
) -> Applied:
    """Compresses the model's layers as `steps` say; the model then computes with the compressed weights.

    Techniques that scale columns first move scales into other weights too, which keeps the function. `batches` are the
    calibration data; they may be empty if no technique needs them. Raises `PlanError` for steps
    that do not fit the model, `DataError` for calibration data that is missing or not finite, `ModelError` for
    weights that are not finite.
    """
    assigned = assign(hierarchy, steps)
    result = Applied({}, {}, [])
    _transform(model, hierarchy, assigned, batches, result)
    _compress(model, hierarchy, assigned.chains, batches, progress, result)
    return result


def _transform(
    model: nn.Module, hierarchy: Hierarchy, assigned: Assigned, batches: Sequence[Batch], result: Applied
) -> None:
    for number, technique, at in assigned.whole:
        if technique.phase == "transform":
            notes = technique.transform(model, hierarchy, hierarchy.select(at), batches)
            result.notes.extend(f"compression step {number}: {note}" for note in notes)


def _compress(
    model: nn.Module,
    hierarchy: Hierarchy,
    chains: Mapping[str, Chain],
    batches: Sequence[Batch],
    progress: Progress,
    result: Applied,
) -> None:
    layers = {layer.path: layer for layer in hierarchy.layers() if layer.path in chains}
    uses = Counter(model.get_parameter(name) for name, _ in model.named_parameters(remove_duplicate=False))
    rounded: dict[str, Rounded] = {}

    def put(layer: Layer, dense: Tensor) -> None:
        alone = uses[model.get_parameter(layer.tensor)] < 2
        (overwrite_weight if alone else replace_weight)(model, layer, dense)

    def compress(layer: Layer, statistics: Statistics | None) -> None:
        if not _has_grid(layer):
            result.notes.append(f"{layer.path}: left at 16 bits, since its storage has no low-bit form")
            return
        chain, weight = chains[layer.path], finite_weight(model, layer)
        done = chain.run(weight, statistics)
        if isinstance(chain.quantise, Polisher) and statistics is not None and done.tensor is not None:
            rounded[layer.path] = Rounded(weight.clone(), done.tensor, statistics)
        put(layer, done.dense)
        if done.tensor is not None:
            result.tensors[layer.path] = reshaped(done.tensor, layer)
        if done.mask is not None:
            result.masks[layer.path] = done.mask
        if done.low_rank is not None:
            result.low_ranks[layer.path] = done.low_rank
        result.losses[layer.path] = done.loss
        result.notes.extend(f"{layer.path}: {note}" for note in done.notes if layer.kind != "embedding")

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
        for path in fold_scales(model, hierarchy, walk, batches, wanted, progress):
            result.notes.append(f"{path}: nothing before it can make up for scales; quantised without")
    steps_layers = layers_by_step(walk, hierarchy)
    stream = Stream(walk, batches)
    unchanged = Stream(walk, batches) if "both models" in needs else None

    def polish(number: int, entries: Sequence[Entry], targets: Sequence[Any]) -> bool:
        block = walk.stages[number].block
        found = _polished(model, block, rounded, chains, _runs(batches, entries, targets))
        for path, tensor in found.items():
            put(layers[path], tensor.dequantize())
            result.tensors[path] = reshaped(tensor, layers[path])
            before = rounded[path]
            result.losses[path] = judged(before.weight, tensor, before.statistics).loss
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


def _has_grid(layer: Layer) -> bool:
    """Whether a layer is stored as a plain matrix: stacked experts and input-major weights have no low-bit form yet."""
    return layer.kind != "expert" and not layer.transposed


def _runs(batches: Sequence[Batch], entries: Sequence[Entry], targets: Sequence[Any]) -> list[BlockRun]:
    """The batches at a block's door with the outputs that are wanted there."""
    runs = []
    for batch, entry, target in zip(batches, entries, targets, strict=True):
        output: Tensor = target[0] if isinstance(target, tuple) else target
        mask = token_mask(batch)
        fits = mask is not None and output.shape[:2] == mask.shape
        runs.append(BlockRun(entry.args, entry.kwargs, output, mask if fits else None))
    return runs


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
            layer.tensor.removeprefix(f"{block.module}."): path
            for path, layer in here.items()
            if chains[path].quantise == technique
        }
        members = {name: rounded[path] for name, path in paths.items()}
        better = technique.polish(model.get_submodule(block.module), members, runs)
        found |= {paths[name]: tensor for name, tensor in better.items()}
    return found


def reshaped(tensor: QuantizedTensor, layer: Layer) -> QuantizedTensor:
    """A quantised matrix as the weight of `layer`, whose stored shape may have more dimensions."""
    if tensor.shape == layer.shape:
        return tensor
    return QuantizedTensor(tensor.scheme, layer.shape, tensor.codes, tensor.scales, tensor.zeros)
