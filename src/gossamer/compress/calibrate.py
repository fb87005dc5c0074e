"""Gathering layer statistics block by block: only one stage's activations and Hessians are alive at a time."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gossamer.compress.quantize.statistics import Accumulator, Statistics
from gossamer.data.batch import Batch
from gossamer.engine.walk import Entry, Walk
from gossamer.models.hierarchy import Hierarchy, Layer

T = TypeVar("T")


def layers_by_step(walk: Walk, hierarchy: Hierarchy) -> dict[int, tuple[Layer, ...]]:
    """Step → the layers that first see their final inputs in it: a stage's block and what runs right after it.

    Step -1 holds what runs before the first block. Layers that this forward pass does not run are in no step.
    """
    steps: dict[int, list[Layer]] = {number: [] for number in range(-1, len(walk.stages))}
    for number, stage in enumerate(walk.stages):
        steps[number] += stage.block.layers
    for modality in hierarchy.modalities:
        for layer in modality.layers:
            step = walk.step_of(layer)
            if step is not None:
                steps[step].append(layer)
    return {number: tuple(layers) for number, layers in steps.items()}


class Stream:
    """The calibration batches on their way through the model, one stage at a time.

    `run(None)` runs the present step; `advance()` moves every batch to the door of the next stage with the weights as
    they stand then.
    """

    def __init__(self, walk: Walk, batches: Sequence[Batch]) -> None:
        self.walk = walk
        self.batches = batches
        self.step = -1
        self._entries: list[Entry] | None = None

    def entry(self, number: int) -> Entry | None:
        """Where batch `number` stands: None before the first stage."""
        return self._entries[number] if self._entries is not None else None

    @property
    def last(self) -> bool:
        """Whether the present step ends at the model's output."""
        return self.step == len(self.walk.stages) - 1

    def run(self, number: int) -> Entry | None:
        """Runs the present step for one batch. Returns its entry at the next stage, None at the output."""
        inputs = self.batches[number].inputs
        entry = self.entry(number)
        if entry is None:
            return self.walk.start(inputs)
        if self.last:
            self.walk.finish(entry, inputs)
            return None
        return self.walk.advance(entry, inputs)

    def output(self, number: int, batch: Batch) -> Any:
        """The model's output for batch `number`, running only from where it stands."""
        return self.walk.finish(self.entry(number), batch.inputs)

    def advance(self) -> None:
        """Every batch goes on to the next stage."""
        self._entries = [entry for n in range(len(self.batches)) if (entry := self.run(n)) is not None]
        self.step += 1


def collect(model: nn.Module, stream: Stream, layers: Iterable[Layer]) -> dict[str, Statistics]:
    """Runs the stream's present step and returns the statistics of those `layers` that multiply their inputs.

    Embeddings and stacked expert tensors have none and are left out. Layers that are handed the very same input
    tensor (q/k/v, gate/up) share one object. Raises `DataError` for inputs that are not finite.
    """
    followed = [layer for layer in layers if layer.kind in ("linear", "conv")]
    accumulators: dict[str, Accumulator] = {}
    leaders: dict[str, str] = {}
    seen: list[tuple[Tensor, str]] = []
    masks: list[Tensor | None] = [None]

    def follow(layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs = args[0]
            if layer.path not in leaders:
                twin = next((path for tensor, path in seen if tensor is inputs), None)
                leaders[layer.path] = twin or layer.path
                if twin is None:
                    accumulators[layer.path] = Accumulator(layer.path, module)
            if leaders[layer.path] == layer.path:
                seen.append((inputs, layer.path))
                accumulators[layer.path].add(inputs, _fitting(masks[0], inputs))

        return hook

    with ExitStack() as stack:
        for layer in followed:
            module = model.get_submodule(layer.module)
            stack.callback(module.register_forward_pre_hook(follow(layer)).remove)
        for number, batch in enumerate(stream.batches):
            mask = batch.inputs.get("attention_mask")
            masks[0] = mask.bool() if mask is not None and mask.dim() == 2 else None
            stream.run(number)
            seen.clear()
    finished = {path: accumulator.finish() for path, accumulator in accumulators.items()}
    return {path: finished[leader] for path, leader in leaders.items()}


def _fitting(mask: Tensor | None, inputs: Tensor) -> Tensor | None:
    """The padding mask, where the layer's inputs are laid out in the mask's tokens."""
    if mask is None or inputs.dim() < 3 or inputs.shape[:2] != mask.shape or bool(torch.all(mask)):
        return None
    return mask
