"""The codes in a compressed-tensors checkpoint, read back as they are stored."""

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.models.loading import load_packed, meta_model, quiet, read_config
from gossamer.models.packed import QuantizedTensor, Scheme, scheme_state
from gossamer.models.stacks import merged, taken_apart
from gossamer.models.stored import safetensors_files

if TYPE_CHECKING:
    from torch import Tensor, nn


def stored_codes(directory: Path) -> dict[str, QuantizedTensor]:
    """Parameter → its codes, for every layer of the checkpoint that lies on a grid of whole numbers.

    Empty for a checkpoint that is not compressed. Raises `ModelError` for a damaged one.
    """
    config = read_config(directory / "config.json")
    if getattr(config, "quantization_config", None) is None:
        return {}
    with quiet():
        return codes_in(load_packed(directory, config))


def codes_in(model: "nn.Module") -> dict[str, QuantizedTensor]:
    """The same of a model that was opened without unpacking (see `load_packed`)."""
    found = {f"{name}.weight": codes_of_layer(module) for name, module in model.named_modules()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def codes_of_layer(layer: "nn.Module") -> QuantizedTensor | None:
    """The codes of a layer of such a model; None for one that is not compressed.

    So are layers in other forms (float codes, packed zero points, columns in an order of their own, scales that 16-bit
    floats do not hold): unpacked they have their values.
    """
    weights = getattr(getattr(layer, "quantization_scheme", None), "weights", None)
    if weights is None or weights.type != "int" or weights.strategy not in ("group", "channel"):
        return None
    scheme = Scheme(weights.num_bits, weights.group_size or None, weights.symmetric)
    return _tensor({part: getattr(layer, f"weight{part}", None) for part in _PARTS}, scheme)


def stacked_codes(directory: Path) -> dict[str, QuantizedTensor]:
    """`parameter.expert.part` → the codes of a matrix that loading unpacks and merges into a stacked parameter (see
    `stacks`): part 0 is what its first rows are, part 1 what follows them.

    Empty for a checkpoint that has none. Raises `ModelError` for a damaged one.
    """
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name

    config = read_config(directory / "config.json")
    said = getattr(config, "quantization_config", None)
    keys = _stacked(meta_model(config, directory)) if said is not None else {}
    codes: dict[str, QuantizedTensor] = {}
    if not keys:
        return codes
    groups: list[Any] = list(QuantizationConfig.model_validate(said).config_groups.values())
    for layer, parts in _parts_in(directory, keys).items():
        of_layer = (group.weights for group in groups if any(match_name(layer, target) for target in group.targets))
        weights = next(of_layer, None)
        if weights is None or weights.type != "int" or "_packed" not in parts:
            continue
        scheme = Scheme(weights.num_bits, weights.group_size or None, weights.symmetric)
        tensor = _tensor({part: parts.get(part) for part in _PARTS}, scheme)
        if tensor is not None:
            codes[keys[layer]] = tensor
    return codes


def _stacked(model: "nn.Module") -> dict[str, str]:
    """Layer in a checkpoint → `parameter.expert.part` of the stack that it is merged into."""
    import torch

    found = {}
    for name, count in merged(model).items():
        experts, rows, _ = model.get_parameter(name).shape
        numbered = torch.arange(experts * rows).reshape(experts, rows, 1)
        for key, matrix in taken_apart(model, name, numbered).items():
            expert, part = divmod(int(matrix[0, 0]) // (rows // count), count)
            found[key.removesuffix(".weight")] = f"{name}.{expert}.{part}"
    return found


def _parts_in(directory: Path, layers: Container[str]) -> "dict[str, dict[str, Tensor]]":
    """Layer → what is stored of its weight, by the end of the name."""
    from safetensors import safe_open

    found: dict[str, dict[str, Tensor]] = {}
    for file in safetensors_files(directory):
        with safe_open(file, framework="pt", backend="pread") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - the handle is no mapping
                layer, _, part = name.rpartition(".weight")
                if layer in layers:
                    found.setdefault(layer, {})[part] = tensors.get_tensor(name)
    return found


_PARTS = ("", "_packed", "_scale", "_shape", "_zero_point", "_g_idx")


def _tensor(parts: "dict[str, Any]", scheme: Scheme) -> QuantizedTensor | None:
    scales, zeros = parts["_scale"], parts["_zero_point"]
    if scales is None or parts["_g_idx"] is not None or not bool((scales.half().to(scales.dtype) == scales).all()):
        return None
    if scheme.symmetric:
        zeros = None
    elif zeros is None or str(zeros.dtype) != "torch.int8":
        return None
    if parts["_packed"] is None:
        codes = parts[""].detach()
        matrix = codes.reshape(codes.shape[0], -1)
        return QuantizedTensor(scheme, tuple(codes.shape), matrix, scales.detach().half(), zeros)
    if zeros is not None:
        return None
    said = {"scheme": scheme_state(scheme), "shape": parts["_shape"]}
    return QuantizedTensor.from_state({**said, "packed": parts["_packed"].detach(), "scales": scales.detach().half()})
