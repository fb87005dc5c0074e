"""Seeing what layers are about to multiply, whether a layer is a module or one expert of a stacked parameter."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from gossamer.engine.experts import Read, Routed, one_by_one, runs_one_by_one
from gossamer.models.hierarchy import Layer

Look = Callable[[Layer, Tensor, Routed | None], None]
"""Is given a layer, its inputs, and for an expert whose inputs they are. It may change the layer's weight: the product
is taken afterwards."""


@contextmanager
def looking(model: nn.Module, layers: Iterable[Layer], look: Look) -> Iterator[bool]:
    """Inside, `look` is called whenever one of these layers runs; embeddings, which multiply nothing, are left out.

    Yields whether there is any layer to see: stacked experts are none where their module does not say how it computes
    (see `runs_one_by_one`).
    """
    stacked: dict[str, dict[tuple[str, int], Layer]] = {}
    any_seen = False
    with ExitStack() as stack:
        for layer in layers:
            if layer.index is not None:
                stacked.setdefault(layer.module, {})[layer.parameter, layer.index] = layer
            elif layer.kind != "embedding":
                module = model.get_submodule(layer.module)
                stack.callback(module.register_forward_pre_hook(_hook(layer, look)).remove)
                any_seen = True
        for path, matrices in stacked.items():
            module = model.get_submodule(path)
            if runs_one_by_one(module):
                stack.enter_context(one_by_one(module, _reader(matrices, look)))
                any_seen = True
        yield any_seen


def _hook(layer: Layer, look: Look) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        look(layer, args[0], None)

    return hook


def _reader(matrices: dict[tuple[str, int], Layer], look: Look) -> Read:
    def read(name: str, index: int, inputs: Tensor, routed: Routed) -> None:
        layer = matrices.get((name, index))
        if layer is not None:
            look(layer, inputs, routed)

    return read
