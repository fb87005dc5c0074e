"""Putting other weights into a model and taking them out again."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from gossamer.core.errors import ModelError
from gossamer.models.hierarchy import Layer
from gossamer.models.packed import QuantizedTensor
from gossamer.models.structure import read_matrix, write_matrix


class Swap:
    """Replaces weights of one model by quantised ones, and remembers what was there.

    A replaced weight is a new parameter, so layers that shared a tensor (tied heads) part on the first replacement
    and share again once both are restored. Of a stacked parameter only the layer's own part is written over.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._originals: dict[str, tuple[Layer, Tensor]] = {}

    def put(self, layer: Layer, tensor: QuantizedTensor | None) -> None:
        """The layer computes with `tensor` from now on; None restores the original."""
        if tensor is not None:
            self.put_values(layer, tensor.to(self._model.get_parameter(layer.tensor).device).dequantize())
        elif layer.path in self._originals:
            original = self._originals.pop(layer.path)[1]
            if layer.index is None:
                self._model.get_submodule(layer.module)._parameters[layer.parameter] = cast(nn.Parameter, original)
            else:
                overwrite_weight(self._model, layer, original)

    def put_values(self, layer: Layer, values: Tensor) -> None:
        """The layer computes with `values` (rows, columns) from now on."""
        if layer.path not in self._originals:
            parameter = self._model.get_parameter(layer.tensor)
            original = parameter if layer.index is None else read_matrix(self._model, layer).clone()
            self._originals[layer.path] = layer, original
        (replace_weight if layer.index is None else overwrite_weight)(self._model, layer, values)

    def put_all(self, layers: Mapping[str, Layer], tensors: Mapping[str, QuantizedTensor]) -> None:
        """The model computes with exactly these tensors: what is not among them is restored."""
        for path in [path for path in self._originals if path not in tensors]:
            self.put(self._originals[path][0], None)
        for path, tensor in tensors.items():
            self.put(layers[path], tensor)

    def put_only(self, layers: Iterable[Layer], tensors: Mapping[str, QuantizedTensor]) -> None:
        """These layers, and no others, change: to their tensor, or back to the original where they have none."""
        for layer in layers:
            self.put(layer, tensors.get(layer.path))

    def restore(self) -> None:
        """Puts every original weight back."""
        for layer, _ in list(self._originals.values()):
            self.put(layer, None)


def replace_weight(model: nn.Module, layer: Layer, values: Tensor) -> None:
    """The layer computes with `values`, in a new parameter of the old one's type: other owners keep the old one."""
    own = nn.Parameter(model.get_parameter(layer.tensor).detach().clone(), requires_grad=False)
    model.get_submodule(layer.module)._parameters[layer.parameter] = own
    overwrite_weight(model, layer, values)


def overwrite_weight(model: nn.Module, layer: Layer, values: Tensor) -> None:
    """Writes `values` (of any shape) into the layer's weight, and so into all that share it, without more memory."""
    write_matrix(model, layer, values.reshape(layer.rows, layer.columns))


@contextmanager
def restored(model: nn.Module, layers: Iterable[Layer]) -> Iterator[None]:
    """Inside, these layers work on copies of their weights (shared ones stay shared); the originals are back after."""
    places = [(model.get_submodule(layer.module)._parameters, layer.parameter) for layer in layers]
    originals = [parameters[name] for parameters, name in places]
    copies: dict[int, nn.Parameter] = {}
    for (parameters, name), original in zip(places, originals, strict=True):
        assert original is not None
        if id(original) not in copies:
            copies[id(original)] = nn.Parameter(original.detach().clone(), requires_grad=False)
        parameters[name] = copies[id(original)]
    copies.clear()
    try:
        yield
    finally:
        for (parameters, name), original in zip(places, originals, strict=True):
            parameters[name] = original


def finite_weight(model: nn.Module, layer: Layer) -> Tensor:
    """The layer's weight as float32 (rows, columns). Raises `ModelError` where it holds NaN or infinity."""
    weight = read_matrix(model, layer).float()
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(f"layer {layer.path} ({layer.tensor}) holds NaN or infinite values; mend the checkpoint")
    return weight
