"""How a checkpoint holds the matrices of stacked experts: each by a name of its own, all of a model on one grid.

transformers merges the matrices that a checkpoint names one by one into the stacks that its models compute with, and
unpacks them on the way. What it merges is asked of its own conversion; what it unpacks is, of transformers 5.23, packed
codes without zero points and E4M3 codes. It does so with the bits and the group of one config group, whatever the
others say. Grids that differ are therefore written on the coarsest that holds them all, which changes no value.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import gcd
from typing import TYPE_CHECKING, Any

from gossamer.models.packed import QuantizedTensor, Scheme

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gossamer.models.hierarchy import Layer


def taken_apart(model: "nn.Module", name: str, stack: "Tensor") -> "dict[str, Tensor]":
    """Name in a checkpoint → matrix (rows, …), for a tensor (experts, rows, …) that stands in the place of the stacked
    parameter `name`; by its own name alone where checkpoints hold it whole."""
    from transformers.core_model_loading import revert_weight_conversion

    whole: Any = model
    found: dict[str, Tensor] = revert_weight_conversion(whole, {name: stack})
    return found


def merged(model: "nn.Module") -> dict[str, int]:
    """Stacked parameter → how many matrices of a checkpoint make up one of its own, for those that loading merges."""
    import torch

    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() != 3 or name.endswith(".weight"):
            continue
        try:
            apart = taken_apart(model, name, torch.empty_like(parameter, device="meta"))
        except Exception:  # a conversion that needs other tensors beside it: checkpoints hold it as it is
            continue
        experts, rows, columns = parameter.shape
        parts = len(apart) // experts
        if parts and all(
            key.endswith(".weight") and tuple(matrix.shape) == (rows // parts, columns) for key, matrix in apart.items()
        ):
            found[name] = parts
    return found


def shared_schemes(layers: "Iterable[Layer]", schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """The grids on which a checkpoint holds the `layers` of a model, by path.

    As `schemes` say, but for experts: all of them are on the coarsest grid that holds the grids of all, and those of a
    stack of which some have none, or of a model that has codes of whole numbers and of floats, have none.
    """
    found = dict(schemes)
    stacks: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.index is not None:
            stacks.setdefault(layer.tensor, []).append(layer)
    whole = [stack for stack in stacks.values() if all(_is_held(schemes.get(layer.path)) for layer in stack)]
    held = {layer.path: layer for stack in whole for layer in stack}
    if len({schemes[path].format for path in held}) > 1:
        held = {}
    for stack in stacks.values():
        for layer in stack:
            if layer.path not in held:
                found.pop(layer.path, None)
    if held:
        bits = max(schemes[path].bits for path in held)
        group: int | None = gcd(*(schemes[path].group or layer.columns for path, layer in held.items()))
        if all(schemes[path].group is None for path in held):
            group = None
        for path in held:
            found[path] = replace(schemes[path], bits=bits, group=group)
    return found


def _is_held(scheme: Scheme | None) -> bool:
    return scheme is not None and scheme.symmetric and scheme.format in ("int", "fp8")


def on_grid(tensor: QuantizedTensor, scheme: Scheme) -> QuantizedTensor:
    """The same values on a grid of more bits and smaller groups."""
    if tensor.scheme == scheme:
        return tensor
    groups = scheme.groups(tensor.codes.shape[1])
    scales = tensor.scales.repeat_interleave(groups // tensor.scales.shape[1], dim=1)
    return QuantizedTensor(scheme, tensor.shape, tensor.codes, scales)
