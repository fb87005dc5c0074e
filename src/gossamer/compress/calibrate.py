"""Gathering layer statistics block by block: only one stage's activations and Hessians are alive at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import greenlet
import torch
from torch import Tensor, nn

from gossamer.compress.statistics import Accumulator, Statistics
from gossamer.data.batch import Batch
from gossamer.engine.experts import Routed
from gossamer.engine.looking import looking
from gossamer.engine.walk import Entry, Walk
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.memory import IN_MEMORY, Memory


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


Weights = Sequence[Mapping[str, Tensor]]
"""For each batch, layer path → what each of its input vectors weighs, float32 of the inputs' shape without the last
dimension; for an expert (tokens,) of all that its module gets. Over all batches the mean is 1."""


class Stream:
    """The calibration batches on their way through the model, one stage at a time.

    `advance()` moves every batch to the door of the next stage with the weights as they stand then. `memory` takes what
    is recorded of it. `weights` tell what tokens weigh in layers' statistics: where they tell nothing, all alike.
    """

    def __init__(
        self, walk: Walk, batches: Sequence[Batch], memory: Memory = IN_MEMORY, weights: Weights | None = None
    ) -> None:
        self.memory = memory
        self.weights = weights or [{} for _ in batches]
        self.walk = walk
        self.batches = batches
        self.step = -1
        self._entries: list[Entry] | None = None

    def entry(self, number: int) -> Entry | None:
        """Where batch `number` stands: None before the first stage."""
        return self._entries[number] if self._entries is not None else None

    @property
    def entries(self) -> Sequence[Entry]:
        """Where the batches stand, once they are at a stage."""
        assert self._entries is not None
        return self._entries

    def inside(self) -> frozenset[str]:
        """The paths of the layers of the block at whose door the batches stand; none before the first."""
        block = self.walk.stages[self.step].block if self.step >= 0 else None
        return frozenset(layer.path for layer in block.layers) if block is not None else frozenset()

    @property
    def last(self) -> bool:
        """Whether the present step ends at the model's output."""
        return self.step == len(self.walk.stages) - 1

    def run(self, number: int, output: Any = None) -> Entry | None:
        """Runs the present step for one batch (its block not again, if its `output` is given).

        Returns the batch's entry at the next stage, None at the model's output.
        """
        inputs = self.batches[number].inputs
        entry = self.entry(number)
        if entry is None:
            return self.walk.start(inputs)
        if self.last:
            self.walk.finish(entry, inputs, output)
            return None
        return self.walk.advance(entry, inputs, output)

    def output(self, number: int, batch: Batch) -> Any:
        """The model's output for batch `number`, running only from where it stands."""
        return self.walk.finish(self.entry(number), batch.inputs)

    def advance(self, outputs: Sequence[Any] | None = None) -> None:
        """Every batch goes on to the next stage; `outputs` of the present block are not computed again."""
        known = outputs or [None] * len(self.batches)
        self._entries = [entry for n, output in enumerate(known) if (entry := self.run(n, output)) is not None]
        self.step += 1


Leave = Callable[[int, Sequence[Entry], Sequence[Any]], bool]
"""What is done once a stage's block is behind, given its number, the batches at its door and the unchanged model's
outputs there; true if it changed the block's weights."""

Meet = Callable[[Layer, Statistics | None], None]
"""What is done with a layer and its inputs' statistics (None: the data gave none). It may change the weight."""


def pass_through(
    model: nn.Module,
    stream: Stream,
    layers: Iterable[Layer],
    meet: Meet,
    unchanged: Stream | None = None,
    leave: Leave | None = None,
) -> None:
    """Moves every batch through the present step, and meets its `layers` on the way.

    The block is run once: all batches go to a layer's door, the layer is met, and all go on through its new weight.
    So each layer is calibrated on what reaches it through the layers already met, inside the block too. Layers outside
    the block are met after a pass of their own. At the model's last block the batches stop. With a stream of the
    `unchanged` model, which comes along, statistics tell both models' inputs apart; a block's inputs there are kept in
    memory meanwhile. `leave` (with `unchanged` only) is called when the block's layers are met. Raises `DataError` for
    inputs that are not finite.
    """
    layers, inside = list(layers), stream.inside()
    here = [layer for layer in layers if layer.path in inside]
    outside = [layer for layer in layers if layer.path not in inside]
    originals, wanted = (None, None) if unchanged is None else _record(model, unchanged, here, outside)
    outputs = _lockstep(model, stream, here, meet, originals) if here else None
    if here and wanted and leave is not None and leave(stream.step, stream.entries, wanted):
        outputs = [stream.walk.through(entry) for entry in stream.entries]
    statistics = collect(model, stream, outside, outputs, originals)
    for layer in outside:
        meet(layer, statistics.get(layer.path))
    if not stream.last:
        stream.advance(outputs)


Originals = Sequence[dict[str, tuple[Tensor, Routed | None]]]
"""For each batch, layer path → the inputs that the unchanged model gives the layer; for an expert, whose they are."""


def collect(
    model: nn.Module,
    stream: Stream,
    layers: Iterable[Layer],
    outputs: Sequence[Any] | None = None,
    originals: Originals | None = None,
) -> dict[str, Statistics]:
    """Runs the stream's present step and returns the statistics of those `layers` that multiply their inputs.

    Only the block is run where all `layers` lie in it; its `outputs`, if given, are not computed again. Embeddings have
    no statistics and are left out, and so are experts that no token is sent to. Raises `DataError` for inputs that are
    not finite.
    """
    watch, layers = _Watch(model, stream, originals), list(layers)
    inside = stream.inside()
    within = outputs is None and all(layer.path in inside for layer in layers)
    with watch.following(layers, lambda layer: None) as anything:
        for number in range(len(stream.batches) if anything else 0):
            watch.number = number
            if within:
                stream.walk.through(stream.entries[number])
            else:
                stream.run(number, outputs[number] if outputs is not None else None)
    found = {layer.path: watch.statistics(layer.path) for layer in layers}
    return {path: statistics for path, statistics in found.items() if statistics is not None}


def _record(
    model: nn.Module, stream: Stream, inside: Iterable[Layer], outside: Iterable[Layer]
) -> tuple[Originals, list[Any] | None]:
    """Moves every batch of the unchanged model through the present step.

    Returns what the layers inside and outside the block were given, and the block's outputs (None before the first).
    """
    found: list[dict[str, tuple[Tensor, Routed | None]]] = [{} for _ in stream.batches]
    memory = stream.memory.part()
    copies: list[tuple[ref[Tensor], Tensor]] = []
    present: list[dict[str, tuple[Tensor, Routed | None]]] = [{}]

    def keep(layer: Layer, inputs: Tensor, routed: Routed | None) -> None:
        copy = next((copy for seen, copy in copies if seen() is inputs), None)
        if copy is None:
            copy = memory.copy(inputs)
            copies.append((ref(inputs), copy))
        present[0].setdefault(layer.path, (copy, routed))

    outputs: list[Any] | None = None
    if stream.step >= 0:
        outputs = []
        with looking(model, inside, keep):
            for present[0], entry in zip(found, stream.entries, strict=True):
                copies.clear()
                outputs.append(stream.walk.through(entry))
    with looking(model, outside, keep) as anything:
        for number, present[0] in enumerate(found if anything else ()):
            copies.clear()
            stream.run(number, outputs[number] if outputs is not None else None)
    if not stream.last:
        stream.advance(outputs)
    return found, outputs


def _lockstep(
    model: nn.Module, stream: Stream, layers: Sequence[Layer], meet: Meet, originals: Originals | None = None
) -> list[Any]:
    """The block's output for every batch, all batches run side by side so that they meet each layer together.

    Each batch's pass is a coroutine (greenlet) that pauses at the doors of layers not yet met; no two run at a time.
    """
    watch = _Watch(model, stream, originals)
    by_path = {layer.path: layer for layer in layers}
    unmet = dict.fromkeys(by_path)

    def pause(layer: Layer) -> None:
        if layer.path in unmet:
            greenlet.getcurrent().parent.switch(layer.path)

    def run(number: int) -> Any:
        entry = stream.entry(number)
        assert entry is not None
        return stream.walk.through(entry)

    outputs: list[Any] = [None] * len(stream.batches)
    with torch.no_grad(), watch.following(layers, pause):
        passes = [greenlet.greenlet(run) for _ in stream.batches]
        waiting: dict[int, str] = {}

        def go(number: int, *arguments: Any) -> None:
            watch.number = number
            reached = passes[number].switch(*arguments)
            if passes[number].dead:
                outputs[number] = reached
                waiting.pop(number, None)
            else:
                waiting[number] = reached

        try:
            for number in range(len(passes)):
                go(number, number)
            while waiting:
                # Batches stand at different doors only where the data choose the way; they catch up in stored order.
                path = next(path for path in unmet if path in waiting.values())
                del unmet[path]
                watch.forget()
                meet(by_path[path], watch.statistics(path))
                for number in [number for number, place in waiting.items() if place == path]:
                    go(number)
        finally:
            for unfinished in passes:  # after an error, while gradients are still off: each pass restores that state
                unfinished.throw()
    for path in list(unmet):
        meet(by_path[path], None)
    return outputs


class _Watch:
    """Gathers layers' inputs. Layers that are handed the very same tensor (q/k/v, gate/up) share their statistics.

    `number` is the batch that runs now; `leaders` maps each layer seen to the one whose statistics it shares.
    """

    def __init__(self, model: nn.Module, stream: Stream, originals: Originals | None) -> None:
        self._model = model
        self._originals = originals
        self._masks = [token_mask(batch) for batch in stream.batches]
        self._weights = stream.weights
        self._seen: list[list[tuple[ref[Tensor], str]]] = [[] for _ in stream.batches]
        self._accumulators: dict[str, Accumulator] = {}
        self._finished: dict[str, Statistics] = {}
        self._experts: set[str] = set()
        self.leaders: dict[str, str] = {}
        self.number = 0

    @contextmanager
    def following(self, layers: Iterable[Layer], seen: Callable[[Layer], None]) -> Iterator[bool]:
        """Inside, these layers' inputs are gathered; `seen(layer)` is called after each. As `looking` gives."""

        def look(layer: Layer, inputs: Tensor, routed: Routed | None) -> None:
            self._add(layer, inputs, routed)
            seen(layer)

        with looking(self._model, layers, look) as anything:
            yield anything

    def _add(self, layer: Layer, inputs: Tensor, routed: Routed | None) -> None:
        path, before = layer.path, self._seen[self.number]
        mask = _fitting(self._masks[self.number], inputs, routed)
        if routed is not None and mask is not None and not bool(mask.any()):
            return
        if routed is not None:
            self._experts.add(path)
        if path not in self.leaders:
            weighed = self._weights[self.number].keys()
            same = (other for tensor, other in before if tensor() is inputs)
            twin = next((other for other in same if (other in weighed) == (path in weighed)), None)
            self.leaders[path] = twin or path
            if twin is None:
                source = layer.columns if routed is not None else self._model.get_submodule(layer.module)
                self._accumulators[path] = Accumulator(path, source)
        if self.leaders[path] == path and path in self._accumulators:
            before.append((ref(inputs), path))
            unchanged = None
            if self._originals is not None:
                unchanged = _original(self._originals[self.number].get(path), inputs, routed)
            weight = _weights_of(self._weights[self.number].get(path), inputs, routed)
            self._accumulators[path].add(inputs, mask, unchanged, weight)

    def statistics(self, path: str) -> Statistics | None:
        """What the layer's inputs were, up to now; no more are gathered for it. None for an expert that got none."""
        leader = self.leaders.get(path)
        if leader is None:
            return None
        if path in self._experts:  # which are many, and share with nobody
            return self._accumulators.pop(path).finish()
        if leader not in self._finished:
            self._finished[leader] = self._accumulators.pop(leader).finish()
        return self._finished[leader]

    def forget(self) -> None:
        """Lets go of finished statistics that no other layer can share, since the inputs themselves are gone."""
        alive = {path for seen in self._seen for inputs, path in seen if inputs() is not None}
        self._finished = {path: known for path, known in self._finished.items() if path in alive}


def _original(found: tuple[Tensor, Routed | None] | None, inputs: Tensor, routed: Routed | None) -> Tensor | None:
    """What the unchanged model gives in the place of `inputs`.

    Where its router sends a token of an expert elsewhere, that is not known, and the token's present input stands.
    """
    if routed is None:
        return None if found is None else found[0]
    if found is None or found[1] is None:
        return inputs
    place = torch.full((routed.count,), -1, device=inputs.device)
    place[found[1].tokens] = torch.arange(len(found[0]), device=inputs.device)
    place = place[routed.tokens]
    return torch.where(place.unsqueeze(-1) >= 0, found[0][place.clamp_min(0)], inputs)


def _weights_of(weights: Tensor | None, inputs: Tensor, routed: Routed | None) -> Tensor | None:
    """The weights of these `inputs` (…, columns) of a layer, in their shape; None where they are laid out otherwise."""
    if weights is None:
        return None
    if routed is not None:
        return weights.to(inputs.device)[routed.tokens] if len(weights) == routed.count else None
    return weights.to(inputs.device) if weights.shape == inputs.shape[:-1] else None


def token_mask(batch: Batch) -> Tensor | None:
    """Which tokens of a batch are no padding, bool (rows, tokens), where the inputs say."""
    mask = batch.inputs.get("attention_mask")
    return mask.bool() if mask is not None and mask.dim() == 2 else None


def _fitting(mask: Tensor | None, inputs: Tensor, routed: Routed | None) -> Tensor | None:
    """The padding mask of a layer's inputs, where they are laid out in the mask's tokens, or sent out of such ones."""
    if mask is None or bool(torch.all(mask)):
        return None
    if routed is not None:
        return mask.reshape(-1).to(inputs.device)[routed.tokens] if mask.numel() == routed.count else None
    return mask.to(inputs.device) if inputs.dim() >= 3 and inputs.shape[:2] == mask.shape else None
