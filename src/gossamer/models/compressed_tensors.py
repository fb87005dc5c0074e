"""The compressed-tensors format: the tensors a quantised layer is stored as, and the config that describes them.

`config.json` carries one config group for each distinct (container, bits, group, symmetry), whose targets are exact
module names written as regular expressions, so every layer has its own setting and nothing is matched by accident.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gossamer.models.packed import Container, QuantizedTensor, Scheme


def parts(tensor: QuantizedTensor, form: Container) -> dict[str, Tensor]:
    """The stored tensors of one layer by their last name: `weight_packed` int32 or `weight` int8, scales, zeros, shape.

    Raises `ValueError` for the dense container, which has no parts of its own.
    """
    import torch

    if form == "dense":
        raise ValueError("a dense layer is stored as a plain 16-bit weight")
    stored = {"weight_scale": tensor.scales}
    if form == "pack-quantized":
        stored["weight_packed"] = tensor.packed()
        stored["weight_shape"] = torch.tensor(tensor.shape, dtype=torch.int64)
    else:
        stored["weight"] = tensor.codes.reshape(tensor.shape)
    if tensor.zeros is not None:
        stored["weight_zero_point"] = tensor.zeros
    return stored


def quantization_config(forms: Mapping[str, tuple[Container, Scheme]], dense: list[str]) -> dict[str, Any]:
    """The `quantization_config` entry of `config.json`.

    `forms` maps module names to how they are stored; `dense` names the other linear modules, listed under `ignore`.
    """
    groups: dict[tuple[str, int, int, bool], list[str]] = {}
    for module, (form, scheme) in forms.items():
        groups.setdefault((form, scheme.bits, scheme.group or 0, scheme.symmetric), []).append(module)
    formats = sorted({form for form, _ in forms.values()})
    return {
        "quant_method": "compressed-tensors",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": sorted(dense),
        "config_groups": {
            f"group_{index}": {
                "format": form,
                "targets": [f"re:^{re.escape(module)}$" for module in sorted(groups[form, bits, group, symmetric])],
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "group" if group else "channel",
                    "group_size": group or None,
                    "dynamic": False,
                },
            }
            for index, (form, bits, group, symmetric) in enumerate(sorted(groups))
        },
    }
