"""Carrying out a plan's compression on a model in memory.

Quantisation runs in execution order: every layer is calibrated on what reaches it through the layers that are already
quantised, those of its own block too, so that later layers make up for earlier ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from gossamer.compress.calibrate import Stream, layers_by_step, pass_through, token_mask
from gossamer.compress.quantize import Needs, Quantized, SignRound, Statistics
from gossamer.compress.quantize.quantized import judged
from gossamer.compress.quantize.signround import BlockRun, Rounded
from gossamer.compress.scaling import Scaling, fold_scales
from gossamer.compress.swap import finite_weight, overwrite_weight, replace_weight
from gossamer.core.errors import DataError, PlanError
from gossamer.core.plan import Step
from gossamer.core.progress import SILENT, Progress
from gossamer.core.technique import build
from gossamer.data.batch import Batch
from gossamer.engine.walk import Entry, Walk
from gossamer.models.hierarchy import Block, Hierarchy, Layer
from gossamer.models.packed import QuantizedTensor


class Quantizer(Protocol):
    """A technique that puts one weight on a grid."""

    @property
    def needs(self) -> Needs: ...

    def quantize(self, weight: Tensor, statistics: Statistics | None) -> Quantized:
        """The quantised form of `weight` float32 (rows, columns)."""
        ...


@dataclass(frozen=True)
class Applied:
    """What was done: the quantised weights, each layer's output error on calibration data, and remarks by layer."""

    tensors: dict[str, QuantizedTensor]
    losses: dict[str, float]
    notes: list[str]


def assign(hierarchy: Hierarchy, steps: Sequence[Step]) -> dict[str, Quantizer]:
    """Layer path → its quantiser: of the steps that select a layer, the last.

    Raises `PlanError` for a step that selects nothing, an unknown technique or setting, a tied head selected apart
    from its tensor's owner, and for a fused set whose members differ.
    """
    assigned: dict[str, Quantizer] = {}
    for number, step in enumerate(steps):
        technique: Quantizer = build(step.do, step.settings)
        selected = hierarchy.select(step.at)
        if not selected:
            raise PlanError(f"compression step {number + 1}: {step.at!r} selects no layer; gossamer inspect lists them")
        assigned.update({layer.path: technique for layer in selected})
    for name, members in hierarchy.units().items():
        if len({assigned.get(layer.path) for layer in members}) > 1:
            raise PlanError(f"the layers of {name} run as one matrix and must share a setting: give them one step")
    return assigned


def apply_steps(
    model: nn.Module,
    hierarchy: Hierarchy,
    steps: Sequence[Step],
    batches: Sequence[Batch],
    progress: Progress = SILENT,
) -> Applied:
    """Quantises the model's layers as `steps` say; the model then computes with the quantised weights.

    Techniques that scale columns first move scales into other weights too, which keeps the function. `batches` are the
    calibration data; they may be empty if no technique needs them. Raises `PlanError` for steps
    that do not fit the model, `DataError` for calibration data that is missing or not finite, `ModelError` for
    weights that are not finite.
    """
    assigned = assign(hierarchy, steps)
    layers = {layer.path: layer for layer in hierarchy.layers() if layer.path in assigned}
    result = Applied({}, {}, [])
    uses = Counter(model.get_parameter(name) for name, _ in model.named_parameters(remove_duplicate=False))

    rounded: dict[str, Rounded] = {}

    def put(layer: Layer, tensor: QuantizedTensor) -> None:
        alone = uses[model.get_parameter(layer.tensor)] < 2
        (overwrite_weight if alone else replace_weight)(model, layer, tensor)
        result.tensors[layer.path] = tensor

    def quantise(layer: Layer, statistics: Statistics | None) -> None:
        if not _has_grid(layer):
            result.notes.append(f"{layer.path}: left at 16 bits, since its storage has no low-bit form")
            return
        technique, weight = assigned[layer.path], finite_weight(model, layer)
        found = technique.quantize(weight, statistics)
        if isinstance(technique, SignRound) and statistics is not None:
            rounded[layer.path] = Rounded(weight.clone(), found.tensor, statistics)
        put(layer, reshaped(found.tensor, layer))
        result.losses[layer.path] = found.loss
        result.notes.extend(f"{layer.path}: {note}" for note in found.notes if layer.kind != "embedding")

    needs = {technique.needs for technique in assigned.values()}
    if needs <= {"nothing"}:
        for path in progress.track(assigned, "quantise"):
            quantise(layers[path], None)
        return result
    if not batches:
        raise DataError("the plan's techniques need calibration data and there is none: name a task and data")
    walk = Walk(model, hierarchy, batches[0].inputs)
    if any(isinstance(technique, Scaling) for technique in assigned.values()):
        for path in fold_scales(model, hierarchy, walk, batches, assigned, progress):
            result.notes.append(f"{path}: nothing before it can make up for scales; quantised without")
    steps_layers = layers_by_step(walk, hierarchy)
    stream = Stream(walk, batches)
    unchanged = Stream(walk, batches) if "both models" in needs else None

    def polish(number: int, entries: Sequence[Entry], targets: Sequence[Any]) -> bool:
        block = walk.stages[number].block
        found = _polished(model, block, rounded, assigned, _runs(batches, entries, targets))
        for path, tensor in found.items():
            put(layers[path], reshaped(tensor, layers[path]))
            before = rounded[path]
            result.losses[path] = judged(before.weight, tensor, before.statistics).loss
        rounded.clear()
        return bool(found)

    for step in progress.track(sorted(steps_layers), "quantise block by block"):
        wanted = [layer for layer in steps_layers[step] if layer.path in assigned]
        pass_through(model, stream, wanted, quantise, unchanged, polish)
    reached = {layer.path for group in steps_layers.values() for layer in group}
    for path in assigned:
        if path not in reached:
            quantise(layers[path], None)
            result.notes.append(f"{path}: the calibration data does not reach it; rounded without statistics")
    return result


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
    assigned: Mapping[str, Quantizer],
    runs: Sequence[BlockRun],
) -> dict[str, QuantizedTensor]:
    """Better roundings of the block's layers, those of one technique together."""
    found: dict[str, QuantizedTensor] = {}
    here = {layer.path: layer for layer in block.layers if layer.path in rounded}
    for technique in dict.fromkeys(assigned[path] for path in here):
        assert isinstance(technique, SignRound)
        paths = {
            layer.tensor.removeprefix(f"{block.module}."): path
            for path, layer in here.items()
            if assigned[path] == technique
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
