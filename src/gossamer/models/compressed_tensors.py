"""The compressed-tensors format: the tensors a quantised layer is stored as, and the config that describes them.

`config.json` carries one config group for each distinct (container, grid, grid of inputs), whose targets are exact
module names written as regular expressions, so every layer has its own setting and nothing is matched by accident.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gossamer.models.inputs import SCALE_TYPES, InputGrid
from gossamer.models.number_formats import FLOATS, tensor_unit
from gossamer.models.packed import Container, QuantizedTensor, Scheme


def parts(tensor: QuantizedTensor, form: Container) -> dict[str, Tensor]:
    """The stored tensors of one layer by their last name: `weight_packed` or `weight`, scales, zeros, shape.

    Raises `ValueError` for the dense container, which has no parts of its own.
    """
    import torch

    if form == "dense":
        raise ValueError("a dense layer is stored as a plain 16-bit weight")
    if form == "mxfp4-pack-quantized":
        exponents = tensor.scales.float().log2() + 127
        return {"weight_packed": _nibbles(tensor.codes), "weight_scale": exponents.to(torch.uint8)}
    if form == "nvfp4-pack-quantized":
        unit = tensor_unit(float(tensor.scales.max()) * FLOATS["nvfp4"].largest, "nvfp4")
        return {
            "weight_packed": _nibbles(tensor.codes),
            "weight_scale": (tensor.scales.float() / unit).to(torch.float8_e4m3fn),
            "weight_global_scale": torch.tensor([1 / unit]),
        }
    stored = {"weight_scale": tensor.scales}
    if form == "pack-quantized":
        stored["weight_packed"] = tensor.packed()
        stored["weight_shape"] = torch.tensor(tensor.shape, dtype=torch.int64)
    else:
        codes = tensor.codes.reshape(tensor.shape)
        stored["weight"] = codes.view(torch.float8_e4m3fn) if form == "float-quantized" else codes
    if tensor.zeros is not None:
        stored["weight_zero_point"] = tensor.zeros
    return stored


def _nibbles(codes: Tensor) -> Tensor:
    """Two codes of 4 bits in each byte, uint8 (rows, columns / 2), the first in the low half."""
    import torch

    halves = (codes & 15).to(torch.uint8)
    return halves[:, ::2] | halves[:, 1::2] << 4


Kind = tuple[Container, Scheme, InputGrid | None]
"""How a module is stored, and how its inputs are rounded."""


def exactly(module: str) -> str:
    """The target that is this module alone."""
    return f"re:^{re.escape(module)}$"


def all_alike(module: str, last: bool = False) -> str:
    """The target that is all modules whose names differ from this one in numbers, or in the `last` number alone."""
    pieces = module.split(".")
    numbers = [place for place, piece in enumerate(pieces) if piece.isdigit()]
    for place, piece in enumerate(pieces):
        pieces[place] = r"\d+" if place in numbers[-1 if last else 0 :] else re.escape(piece)
    return "re:^" + r"\.".join(pieces) + "$"


def quantization_config(modules: Mapping[str, Kind], experts: Mapping[str, Kind], dense: list[str]) -> dict[str, Any]:
    """The `quantization_config` entry of `config.json`.

    `modules` and `experts` map targets to how what they name is stored; `dense` names the other linear modules, listed
    under `ignore`. The experts' group comes first: transformers unpacks them by the first one that speaks of experts.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    kinds: dict[tuple[Any, ...], Kind] = {}
    for targets in (experts, modules):
        for target, kind in targets.items():
            form, scheme, inputs = kind
            entry = None if inputs is None else inputs.entry()
            grid = scheme.bits, scheme.group or 0, scheme.symmetric
            key = (targets is not experts, form, *grid, json.dumps(entry, sort_keys=True))
            groups.setdefault(key, []).append(target)
            kinds[key] = kind
    formats = sorted({form for form, *_ in kinds.values()})
    return {
        "quant_method": "compressed-tensors",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": sorted(dense),
        "config_groups": {
            f"group_{index}": {
                "format": kinds[key][0],
                "targets": sorted(groups[key]),
                "input_activations": json.loads(key[-1]),
                "output_activations": None,
                "weights": _weights(kinds[key][1]),
            }
            for index, key in enumerate(sorted(groups))
        },
    }


def _weights(scheme: Scheme) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int" if scheme.format == "int" else "float",
        "symmetric": scheme.symmetric,
        "strategy": "group" if scheme.group else "channel",
        "group_size": scheme.group or None,
        "dynamic": False,
    }
    if scheme.format == "nvfp4":
        found["strategy"] = "tensor_group"
    if scheme.format in SCALE_TYPES:
        found["scale_dtype"] = SCALE_TYPES[scheme.format]
    return found
