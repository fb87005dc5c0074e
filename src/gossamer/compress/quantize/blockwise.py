"""Learning what rounds better from a block's output: what SignRound, OmniQuant and learned scales share."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gossamer.compress.calibrate import token_mask
from gossamer.compress.passes import BlockRun, Place
from gossamer.data.batch import Batch
from gossamer.engine.walk import Entry
from gossamer.models.packed import QuantizedTensor

T = TypeVar("T")

TOKENS_PER_STEP = 512
"""About as many tokens as one step of descent sees, in whole rows of a batch: 2,048 gave no lower loss than 512."""

CHECKS = 4
"""How often the difference over all calibration data is measured on the way."""


class Learnt(Protocol):
    """A layer whose rounding depends on unknowns, leaves of autograd."""

    @property
    def unknowns(self) -> Sequence[Tensor]: ...

    def soft(self) -> Tensor:
        """The rounded weight float32 (rows, columns), with gradients as if it had not been rounded."""
        ...

    def hard(self) -> QuantizedTensor:
        """The layer as it would be stored."""
        ...


Move = Callable[[int, Sequence[Tensor]], None]
"""Moves all unknowns, given the step's number from 0 and their gradients."""


def unknowns_of(layers: Mapping[Place, Learnt]) -> list[Tensor]:
    """The unknowns of all layers, in the order in which `learn` hands over their gradients."""
    return [unknown for layer in layers.values() for unknown in layer.unknowns]


def learn(
    block: nn.Module, layers: Mapping[Place, Learnt], runs: Sequence[BlockRun], iterations: int, move: Move
) -> dict[Place, QuantizedTensor]:
    """Learns the unknowns of `layers`, by their places in `block`; empty if nothing better was found.

    See `descend`; the block starts as it stands, and its parameters are not changed.
    """

    def soft() -> dict[Place, Tensor]:
        return {name: layer.soft() for name, layer in layers.items()}

    def settled() -> tuple[dict[Place, QuantizedTensor], dict[Place, Tensor]]:
        found = {name: layer.hard() for name, layer in layers.items()}
        return found, {name: tensor.dequantize() for name, tensor in found.items()}

    return descend(block, unknowns_of(layers), soft, settled, {}, runs, iterations, move) or {}


def descend(
    block: nn.Module,
    unknowns: Sequence[Tensor],
    soft: Callable[[], Mapping[Place, Tensor]],
    settled: Callable[[], tuple[T, Mapping[Place, Tensor]]],
    start: Mapping[Place, Tensor],
    runs: Sequence[BlockRun],
    iterations: int,
    move: Move,
) -> T | None:
    """Learns `unknowns` on which parameters of `block` depend, given by place: `soft` with gradients, `settled` as they
    would be, with what is to be kept then, `start` as they are. None if nothing better than the start was found.

    Each step descends on the mean squared difference to the unchanged model's output for a few rows of one run, drawn
    by a fixed seed. The difference over all runs decides: the best of `CHECKS` states on the way is kept.
    """
    divided = [divides(block, run) for run in runs]
    draw = torch.Generator().manual_seed(0)
    checks = {iterations * check // CHECKS for check in range(1, CHECKS + 1)}
    best: T | None = None
    least = _whole_loss(block, start, runs)
    for step in range(iterations):
        run = runs[step % len(runs)]
        part = _drawn(run, draw) if divided[step % len(runs)] else run
        with torch.enable_grad():
            slopes = torch.autograd.grad(_loss(block, soft(), part), unknowns)
        with torch.no_grad():
            move(step, slopes)
            if step + 1 in checks:
                kept, weights = settled()
                now = _whole_loss(block, weights, runs)
                if now < least:
                    best, least = kept, now
    return best


def runs_of(batches: Sequence[Batch], entries: Sequence[Entry], targets: Sequence[Any]) -> list[BlockRun]:
    """The `batches` at a block's door with the outputs that are wanted there."""
    runs = []
    for batch, entry, target in zip(batches, entries, targets, strict=True):
        output: Tensor = target[0] if isinstance(target, tuple) else target
        mask = token_mask(batch)
        if mask is not None:
            mask = mask.to(output.device) if output.shape[:2] == mask.shape else None
        runs.append(BlockRun(entry.args, entry.kwargs, output, mask))
    return runs


def passing_round(values: Tensor) -> Tensor:
    """Rounded values, with gradients as if they had not been rounded (straight-through)."""
    return values + (values.round() - values).detach()


def sliced(run: BlockRun, rows: Tensor) -> BlockRun:
    """The run of these `rows`, int64 indices into its batch.

    Tensors whose leading dimension is the batch are cut, in tuples, lists and dictionaries too; all else serves every
    row alike (see `divides`).
    """
    batch = len(run.target)

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows] if value.dim() and len(value) == batch else value
        if isinstance(value, dict):
            return {key: cut(part) for key, part in value.items()}
        return type(value)(cut(part) for part in value) if type(value) in (tuple, list) else value

    return BlockRun(cut(run.args), cut(run.kwargs), run.target[rows], None if run.mask is None else run.mask[rows])


@torch.no_grad()
def divides(block: nn.Module, run: BlockRun) -> bool:
    """Whether the rows of a run can be computed apart, found by trying the last one.

    They cannot where the output has no batch of token rows (pictures packed into one sequence), or where an argument
    holds the batch in another dimension.
    """
    if run.target.dim() < 3 or len(run.target) < 2:
        return False
    try:
        alone = _output(block, {}, sliced(run, torch.tensor([len(run.target) - 1])))
    except (RuntimeError, IndexError, ValueError):
        return False
    whole = _output(block, {}, run)[-1:]
    return alone.shape == whole.shape and torch.allclose(alone, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def _drawn(run: BlockRun, draw: torch.Generator) -> BlockRun:
    """As many rows as come to `TOKENS_PER_STEP`, one at least."""
    count = max(1, TOKENS_PER_STEP // prod(run.target.shape[1:-1]))
    if count >= len(run.target):
        return run
    return sliced(run, torch.randperm(len(run.target), generator=draw)[:count])


def _output(block: nn.Module, weights: Mapping[Place, Tensor], run: BlockRun) -> Tensor:
    output = functional_call(block, _parameters(block, weights), run.args, run.kwargs)
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _parameters(block: nn.Module, weights: Mapping[Place, Tensor]) -> dict[str, Tensor]:
    """The block's parameters, by name, that hold these weights (rows, columns)."""
    stacks: dict[str, dict[int, Tensor]] = {}
    found: dict[str, Tensor] = {}
    for (name, index), weight in weights.items():
        if index is None:
            found[name] = weight.reshape(block.get_parameter(name).shape)
        else:
            stacks.setdefault(name, {})[index] = weight
    for name, parts in stacks.items():
        stack = block.get_parameter(name)
        owner: Any = block.get_submodule(name.rpartition(".")[0])
        turned = {index: part.T if owner.is_transposed else part for index, part in parts.items()}
        found[name] = torch.stack([turned.get(index, part) for index, part in enumerate(stack.detach().unbind())])
    return found


def _loss(block: nn.Module, weights: Mapping[Place, Tensor], run: BlockRun) -> Tensor:
    """Mean squared difference of the block's output, computed with these weights, to the target, over real tokens."""
    difference = _output(block, weights, run) - run.target
    return (difference if run.mask is None else difference[run.mask]).square().mean()


@torch.no_grad()
def _whole_loss(block: nn.Module, weights: Mapping[Place, Tensor], runs: Sequence[BlockRun]) -> float:
    return sum(float(_loss(block, weights, run)) for run in runs)
