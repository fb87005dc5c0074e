"""Which parameter each stored tensor belongs to, whatever names and types a checkpoint uses."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.models.stored import stored_tensors

if TYPE_CHECKING:
    from torch import nn

    from gossamer.models.open import Opened

_ENDINGS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale", "weight_g_idx")


def bytes_by_parameter(opened: "Opened") -> tuple[dict[str, int], int]:
    """(bytes on disk of each parameter, bytes that belong to none), for models that were opened from files.

    Scales and zero points count with their weight. A tensor shared by several parameters is the first one's.
    """
    path = opened.file
    if path is None:
        return {}, 0
    if path.suffix == ".gguf":
        return _gguf(opened.model, path)
    if path.suffix == ".bin":
        return _llama2c(opened.model, path), 0
    return _safetensors(opened.model, path)


def _safetensors(model: "nn.Module", directory: Path) -> tuple[dict[str, int], int]:
    owners = _saved_names(model)
    found: dict[str, int] = {}
    lost = 0
    for tensor in stored_tensors(directory):
        stem, _, ending = tensor.name.rpartition(".")
        name = owners.get(tensor.name) or (owners.get(f"{stem}.weight") if ending in _ENDINGS else None)
        if name is None:
            lost += tensor.bytes
        else:
            found[name] = found.get(name, 0) + tensor.bytes
    return found, lost


def _saved_names(model: Any) -> dict[str, str]:
    """Name in a checkpoint → parameter, including the renamings and splits that transformers does when it saves."""
    import torch

    owners = {name: name for name, _ in model.named_parameters(remove_duplicate=False)}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return owners
    for name, parameter in model.named_parameters():
        empty = torch.empty_like(parameter, device="meta")
        try:
            for saved in revert_weight_conversion(model, {name: empty}):
                owners.setdefault(saved, name)
        except Exception:  # a conversion that needs several tensors at once: its names stay as they are
            continue
    return owners


def _gguf(model: Any, path: Path) -> tuple[dict[str, int], int]:
    from gossamer.models.gguf import parameter_names, read_gguf

    file = read_gguf(path)
    names = parameter_names(file.architecture, model)
    found: dict[str, int] = {}
    lost = 0
    for tensor in file.tensors:
        if tensor.name in names:
            found[names[tensor.name]] = tensor.bytes
        else:
            lost += tensor.bytes
    return found, lost


def _llama2c(model: "nn.Module", path: Path) -> dict[str, int]:
    from gossamer.models.llama2c import read_header

    group = read_header(path).group
    return {
        name: parameter.numel() + 4 * (parameter.numel() // group)
        if group and parameter.dim() > 1
        else 4 * parameter.numel()
        for name, parameter in model.named_parameters()
    }
