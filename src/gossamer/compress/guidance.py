"""What a calibration token weighs in a layer: how much the model's predictions hang on what the layer reads there.

Statistics that count all tokens alike spend a layer's few bits on tokens that nothing depends on. An error e of a
layer's output at one token changes the model's loss by about (g · e)², g the loss's gradient there (GuidedQuant, arXiv
2505.07004). Here all layers that read the same input share one number for each token: half of it is the same for all,
half goes with the root mean square g of the gradient at that input. Neither the square of g nor g alone did as well on
a few thousand tokens: too few of them count then, and are fitted too closely. Nor did the gradients of the loss itself,
of a model that is nearly always sure: they rest on the few tokens where it is not. So g is that of `probe_of`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gossamer.compress.calibrate import Weights
from gossamer.compress.structure.outputs import probe_of
from gossamer.data.batch import Batch
from gossamer.engine.experts import Routed
from gossamer.engine.forward import device_of, multiplies_bfloat16
from gossamer.engine.looking import looking
from gossamer.engine.walk import hidden_of, replaced, rows_of_tokens, with_hidden
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.memory import IN_MEMORY, Memory

PREDICTIONS = 1 << 24
"""Values that the predictions for rows that go together may hold."""


def weigh_tokens(
    model: nn.Module,
    hierarchy: Hierarchy,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    memory: Memory = IN_MEMORY,
) -> Weights:
    """The weights of all tokens in those of the `layers` that multiply vectors, by one backward pass of each batch.

    Layers are left out on which nothing depends, or whose inputs are pictures or sounds. Rows of token ids go a few at
    a time, one if they are long; one block's activations and all blocks' inputs are in memory at a time, and `memory`
    rests after each block.
    """
    draw = np.random.default_rng(0)
    found: list[dict[str, Tensor]] = []
    with _differentiable(model, hierarchy, memory) as starts:
        for batch in batches:
            parts = [_weighed(model, layers, part, starts, draw) for part in _parts(batch, _width(model))]
            shared = set.intersection(*(set(part) for part in parts))
            found.append({path: torch.cat([part[path] for part in parts]) for path in shared})
    return _normalised(found)


def _weighed(
    model: nn.Module, layers: Sequence[Layer], rows: Batch, starts: list[Tensor], draw: np.random.Generator
) -> dict[str, Tensor]:
    """Layer path → the root mean square of the gradient at each of its inputs. The rows' graph is gone afterwards.

    Products are taken in bfloat16 where the device is made for them: weights need no more than two digits.
    """
    found: dict[str, Tensor] = {}
    device = device_of(model)
    fast = torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device))
    with looking(model, layers, partial(_listen, found)), torch.enable_grad(), fast:
        logits, gradient = probe_of(model, rows, draw)
        torch.autograd.grad(logits, starts, gradient, allow_unused=True)
    starts.clear()
    # Copies, made side by side: those that were made among the pass's large tensors would leave holes too small for the
    # next row's.
    return {path: weights.clone() for path, weights in found.items()}


def _listen(present: dict[str, Tensor], layer: Layer, inputs: Tensor, routed: Routed | None) -> None:
    """Notes in `present` what the gradient at these inputs will be."""

    def note(gradient: Tensor) -> None:
        weights = gradient.float().square().mean(-1).sqrt()
        if routed is not None:  # tokens that calibration may send here later weigh as much as those sent here now
            everyone = weights.mean().expand(routed.count).clone()
            everyone[routed.tokens] = weights
            weights = everyone
        present[layer.path] = weights

    if inputs.requires_grad and (layer.kind == "linear" or routed is not None):
        inputs.register_hook(note)  # type: ignore[no-untyped-call]


@contextmanager
def _differentiable(model: nn.Module, hierarchy: Hierarchy, memory: Memory) -> Iterator[list[Tensor]]:
    """Inside, gradients flow from every tower's first block on, and no activations but blocks' inputs are kept.

    Yields a list to which every such input is added.
    """
    starts: list[Tensor] = []

    def through(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        hidden = hidden_of(args, kwargs)
        if not hidden.requires_grad:
            hidden = hidden.detach().requires_grad_()
            starts.append(hidden)
        args, kwargs = with_hidden(args, kwargs, hidden)
        return checkpoint(run, forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        memory.rest()
        return output

    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        for parameter in wanted:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        for block in hierarchy.blocks():
            module = model.get_submodule(block.module)
            stack.enter_context(replaced(module, partial(through, module.forward)))
        yield starts


def _width(model: nn.Module) -> int:
    """How many values a token's predictions hold."""
    whole: Any = model
    head = whole.get_output_embeddings()
    return int(head.weight.shape[0]) if head is not None else int(whole.config.get_text_config().hidden_size)


def _parts(batch: Batch, width: int) -> Iterator[Batch]:
    """The batch in parts of as many rows as have `PREDICTIONS` of `width` values, where rows can go by themselves; else
    the batch."""
    if not rows_of_tokens(batch.inputs):
        yield batch
        return
    longest = max(value.shape[1] for value in batch.inputs.values())
    yield from batch.parts(max(1, PREDICTIONS // (longest * width)))


def _normalised(found: Sequence[dict[str, Tensor]]) -> Weights:
    """Weights with a mean of 1, half of it the same for all; layers on which nothing depends are left out."""
    means: dict[str, float] = {}
    for path in {path for batch in found for path in batch}:
        parts = [batch[path].flatten() for batch in found if path in batch]
        means[path] = float(torch.cat(parts).mean()) if len(parts) == len(found) else 0.0
    return [{path: (part / means[path] + 1) / 2 for path, part in batch.items() if means[path] > 0} for batch in found]
