"""The codes in a compressed-tensors checkpoint, read back as they lie in its files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.models.packed import QuantizedTensor, Scheme, scheme_state
from gossamer.models.stored import StoredTensor, stored_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


def stored_codes(directory: Path, model: "nn.Module") -> dict[str, QuantizedTensor]:
    """Parameter of `model` → its codes, for every layer of the checkpoint that lies on a grid of whole numbers.

    Empty for a checkpoint that is not compressed. Layers in other forms (float codes, packed zero points, columns
    in an order of their own, scales that 16-bit floats do not hold) are left out: the model has their values.
    Raises `ModelError` for a damaged file.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if config is None:
        return {}
    stored = {tensor.name: tensor for tensor in stored_tensors(directory)}
    found = {}
    for name, scheme in _schemes(config, model):
        prefix = f"{name}.weight"
        parts = {part: stored[prefix + part] for part in _PARTS if prefix + part in stored}
        tensor = _tensor({part: _load(entry) for part, entry in parts.items()}, scheme)
        if tensor is not None:
            found[prefix] = tensor
    return found


_PARTS = ("", "_packed", "_scale", "_shape", "_zero_point", "_g_idx")


def _schemes(config: dict[str, Any], model: "nn.Module") -> Iterator[tuple[str, Scheme]]:
    """(module, grid) of every module that a config group with a grid of whole numbers names."""
    from compressed_tensors.utils.match import is_match

    groups = [group for group in config["config_groups"].values() if _is_grid(group["weights"])]
    for name, module in model.named_modules():
        for group in groups:
            if is_match(name, module, group["targets"], config.get("ignore") or ()):
                weights = group["weights"]
                yield name, Scheme(weights["num_bits"], weights.get("group_size") or None, weights["symmetric"])


def _is_grid(weights: dict[str, Any] | None) -> bool:
    return weights is not None and weights["type"] == "int" and weights["strategy"] in ("group", "channel")


def _tensor(parts: "dict[str, Tensor]", scheme: Scheme) -> QuantizedTensor | None:
    import torch

    scales, zeros = parts.get("_scale"), parts.get("_zero_point")
    if scales is None or "_g_idx" in parts or not bool((scales.half().to(scales.dtype) == scales).all()):
        return None
    if scheme.symmetric:
        zeros = None
    elif zeros is None or zeros.dtype != torch.int8:
        return None
    if "_packed" not in parts:
        codes = parts[""]
        matrix = codes.reshape(codes.shape[0], -1)
        return QuantizedTensor(scheme, tuple(codes.shape), matrix, scales.half(), zeros)
    if zeros is not None:
        return None
    said = {"scheme": scheme_state(scheme), "shape": parts["_shape"]}
    return QuantizedTensor.from_state({**said, "packed": parts["_packed"], "scales": scales.half()})


def _load(entry: StoredTensor) -> "Tensor":
    from safetensors import safe_open

    with safe_open(entry.file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(entry.name)
        return tensor
