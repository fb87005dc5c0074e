"""The codes in a compressed-tensors checkpoint, read back as they are stored."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.models.loading import load_packed, quiet, read_config
from gossamer.models.packed import QuantizedTensor, Scheme, scheme_state

if TYPE_CHECKING:
    from torch import nn


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
