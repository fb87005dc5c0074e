"""Running a model block by block, from any block on, without knowing its family.

Calibration wants each block's inputs while the blocks before it may change, and sensitivity wants the rest of the model
re-run from one block on. Both are served by one idea: run the model's own forward, let finished towers return what they
returned before, let blocks before the entry do nothing, and hand the entry block its remembered input.
Everything between the blocks (embeddings, masks, rotary tables, merges) runs as the model's authors wrote it, so the
result is exact for any architecture whose blocks map a hidden state to a hidden state.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.errors import ModelError
from gossamer.engine.forward import forward
from gossamer.models.hierarchy import Block, Hierarchy, Layer


@dataclass(frozen=True)
class Stage:
    """One block in execution order and the module path of the tower that it belongs to."""

    block: Block
    root: str


@dataclass
class Entry:
    """The state of one batch at the door of a stage.

    `args` and `kwargs` are what the block is called with, `towers` holds the outputs of the finished towers, `outputs`
    those of earlier blocks of this tower where the model reads them elsewhere too (Qwen3-VL's DeepStack).
    """

    stage: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    towers: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)

    @property
    def hidden(self) -> Tensor:
        """The hidden state that the block reads."""
        return hidden_of(self.args, self.kwargs)


class _Arrived(Exception):  # noqa: N818 - control flow: leaves the forward pass once the wanted input is seen
    pass


class Walk:
    """Walks a model in execution order.

    `stages[k]` is the k-th block that a forward pass of `inputs` runs. `step_of(layer)` tells after which stage a layer
    outside the blocks runs (-1: before the first block). Raises `ModelError` if the forward pass runs no known block.
    """

    def __init__(self, model: nn.Module, hierarchy: Hierarchy, inputs: dict[str, Any]) -> None:
        inputs = first_row(inputs)
        self._model = model
        self._modules = dict(model.named_modules())
        self._roots = [modality.root for modality in hierarchy.modalities if modality.blocks and modality.root]
        order: list[Block] = []
        self._steps: dict[str, int] = {}
        self._tuple_sizes: dict[str, int | None] = {}
        towers: dict[str, Any] = {}

        def meet(block: Block) -> None:
            if block not in order:
                order.append(block)

        def pass_layer(path: str) -> None:
            self._steps[path] = len(order) - 1

        with ExitStack() as stack:
            for modality in hierarchy.modalities:
                for block in modality.blocks:
                    module = self._modules[block.module]
                    stack.callback(module.register_forward_pre_hook(lambda *_, b=block: meet(b)).remove)
                    stack.callback(module.register_forward_hook(self._note_output(block)).remove)
                for layer in modality.layers:
                    module = self._modules[layer.module]
                    stack.callback(module.register_forward_pre_hook(lambda *_, p=layer.path: pass_layer(p)).remove)
            for root in self._roots:
                stack.callback(self._modules[root].register_forward_hook(_keeper(towers, root)).remove)
            self._forward(inputs)
        if not order:
            raise ModelError("the model's forward pass runs none of its known blocks: its family row does not fit it")
        roots = {block.module: modality.root for modality in hierarchy.modalities for block in modality.blocks}
        self.stages = tuple(Stage(block, roots[block.module]) for block in order)
        self._remembered: set[str] = set()
        self._find_remembered(inputs, towers)

    def _find_remembered(self, inputs: dict[str, Any], towers: dict[str, Any]) -> None:
        """Finds the towers that read outputs of their earlier blocks besides passing them on, by trying without."""
        last = {stage.root: number for number, stage in enumerate(self.stages)}
        final = self.stages[-1].root
        entry = self.start(inputs) if any(root != final for root in last) else None
        for number, stage in enumerate(self.stages):
            if entry is None or stage.root == final:
                return
            following = self.advance(entry, inputs) if number + 1 < len(self.stages) else None
            if last[stage.root] == number and following is not None and stage.root in following.towers:  # noqa: SIM102
                if not _same(following.towers[stage.root], towers[stage.root]):
                    self._remembered.add(stage.root)
            entry = following

    def _note_output(self, block: Block) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            self._tuple_sizes[block.module] = len(output) if isinstance(output, tuple) else None

        return note

    def step_of(self, layer: Layer) -> int | None:
        """The stage after which a layer outside the blocks runs; None if the forward pass does not run it."""
        return self._steps.get(layer.path)

    def start(self, inputs: dict[str, Any]) -> Entry:
        """The entry of the first stage."""
        return self._run_to(None, 0, inputs)

    def advance(self, entry: Entry, inputs: dict[str, Any], output: Any = None) -> Entry:
        """Runs `entry`'s stage, and what lies between it and the next one. Returns the next stage's entry.

        With `output` (see `through`) the block itself is not run again.
        """
        return self._run_to(entry, entry.stage + 1, inputs, output)

    def through(self, entry: Entry) -> Any:
        """The output of `entry`'s block alone."""
        block = self._modules[self.stages[entry.stage].block.module]
        args, kwargs = with_hidden(entry.args, entry.kwargs, entry.hidden.clone())
        with torch.no_grad():
            return block(*args, **kwargs)

    def finish(self, entry: Entry | None, inputs: dict[str, Any], output: Any = None) -> Any:
        """The model's output, running from `entry` on (from the beginning for None); `output` as for `advance`."""
        with self._resumed(entry, output):
            return self._forward(inputs)

    def _run_to(self, entry: Entry | None, target: int, inputs: dict[str, Any], output: Any = None) -> Entry:
        towers = dict(entry.towers) if entry else {}
        outputs: dict[str, Any] = {}
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def arrive(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(with_hidden(args, kwargs, hidden_of(args, kwargs).clone()))
            raise _Arrived

        block = self._modules[self.stages[target].block.module]
        with ExitStack() as stack:
            stack.enter_context(self._resumed(entry, output))
            stack.callback(block.register_forward_pre_hook(arrive, with_kwargs=True).remove)
            if entry is not None:
                current = self.stages[entry.stage]
                if current.root in self._remembered and current.root == self.stages[target].root:
                    outputs.update(entry.outputs)
                    module = self._modules[current.block.module]
                    stack.callback(module.register_forward_hook(_keeper(outputs, current.block.module)).remove)
            for root in self._roots:
                if root not in towers and root != self.stages[target].root:
                    keep = _keeper(towers, root)
                    stack.callback(self._modules[root].register_forward_hook(keep).remove)
            with suppress(_Arrived):
                self._forward(inputs)
        if not found:
            raise ModelError(f"the forward pass did not reach block {self.stages[target].block.path} with this batch")
        return Entry(target, *found[0], towers, outputs)

    @contextmanager
    def _resumed(self, entry: Entry | None, output: Any = None) -> Iterator[None]:
        if entry is None:
            yield
            return
        current = self.stages[entry.stage]
        with ExitStack() as stack:
            for root, returned in entry.towers.items():
                stack.enter_context(replaced(self._modules[root], _returning(returned)))
            for number, stage in enumerate(self.stages[: entry.stage]):
                if stage.root == current.root:
                    size = self._tuple_sizes[stage.block.module]
                    # The block just before the entry gave its input, which some models read as a hidden state.
                    skip = _doing_nothing(size, entry.hidden if number == entry.stage - 1 else None)
                    if stage.block.module in entry.outputs:
                        skip = _returning(entry.outputs[stage.block.module])
                    stack.enter_context(replaced(self._modules[stage.block.module], skip))

            def hand_over(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                return with_hidden(args, kwargs, entry.hidden)

            block = self._modules[current.block.module]
            stack.callback(block.register_forward_pre_hook(hand_over, with_kwargs=True, prepend=True).remove)
            if output is not None:
                stack.enter_context(replaced(block, _returning(output)))
            yield

    def _forward(self, inputs: dict[str, Any]) -> Any:
        with torch.no_grad():
            return forward(self._model, inputs)


def rows_of_tokens(inputs: Mapping[str, Any]) -> bool:
    """Whether a model's inputs are rows of whole numbers alone, such as token ids: each row can then go by itself."""
    return all(isinstance(x, Tensor) and x.dim() == 2 and not x.is_floating_point() for x in inputs.values())


def first_row(inputs: dict[str, Any]) -> dict[str, Any]:
    """One example where rows can go by themselves, else all: to see what a model does where more would only cost."""
    return {name: value[:1] for name, value in inputs.items()} if rows_of_tokens(inputs) else inputs


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state among the arguments of a block's call."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a block's call with another hidden state."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def _keeper(towers: dict[str, Any], root: str) -> Callable[..., None]:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        towers[root] = copy(output)

    return keep


def _returning(output: Any) -> Callable[..., Any]:
    # A copy each time: some models write into the output object that their tower returns.
    return lambda *_, **__: copy(output)


def _doing_nothing(tuple_size: int | None, output: Tensor | None) -> Callable[..., Any]:
    """A block's forward that returns `output`, or its own input, in the form that the block returns it."""

    def skip(*args: Any, **kwargs: Any) -> Any:
        hidden = hidden_of(args, kwargs) if output is None else output
        return hidden if tuple_size is None else (hidden, *[None] * (tuple_size - 1))

    return skip


def _same(a: Any, b: Any) -> bool:
    """Whether two tower outputs hold bitwise equal tensors."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return True


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Gives one module instance another `forward` for a while."""
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
