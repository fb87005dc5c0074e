"""Low-rank matrices beside a checkpoint: written as a LoRA adapter, which `peft` loads over the base model.

The file holds the factors as they are, and its configuration fixes every scale at 1: a layer then computes its stored
weight plus `left @ right`. peft asks every linear module for its `weight`, which packed ones do not have until they are
unpacked. So users of plain transformers call `model.hf_quantizer.compressor.decompress_model(model)` on the base first.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError, PlanError
from gossamer.core.files import write_json, writing_directory
from gossamer.models.hierarchy import Layer
from gossamer.models.low_rank import LowRank
from gossamer.models.reloading import plain, quiet
from gossamer.models.stored import stored_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

FOLDER = "adapter"
"""The adapter's folder in a checkpoint's directory; without it the base model still loads by itself."""


def write_adapter(layers: Mapping[str, tuple[Layer, LowRank]], directory: Path, base: str) -> int:
    """Writes the low-rank matrices of `layers` (by layer path, at least one) beside the checkpoint in `directory`.

    Returns the bytes of the tensors in the file. `base` names the base model in the adapter's configuration. The same
    matrices give the same bytes. Raises `PlanError` for a layer that no adapter reaches and for a matrix that is not of
    its layer's shape, `OutputError` where the folder cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    parts: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path in sorted(layers):
        layer, matrix = layers[path]
        ranks[layer.module] = matrix.rank
        for name, part in _parts(layer, matrix).items():
            own = part.clone(memory_format=torch.contiguous_format)  # the file's tensors must not share memory
            parts[f"base_model.model.{layer.module}.{name}"] = own
    with writing_directory(directory / FOLDER) as folder:
        save_file(parts, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(folder / "adapter_config.json", _config(ranks, base))
        return sum(tensor.bytes for tensor in stored_tensors(folder))


def read_adapter(directory: Path) -> dict[str, LowRank]:
    """Module → the low-rank matrix that is added to its weight, as `write_adapter` wrote them beside a checkpoint.

    Empty where there are none. Raises `ModelError` for a file that holds anything else.
    """
    from safetensors import safe_open

    file = directory / FOLDER / "adapter_model.safetensors"
    if not file.is_file():
        return {}
    with safe_open(file, framework="pt") as stored:
        state = {name.removeprefix("base_model.model."): stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    found = {}
    for name in sorted(state):
        module, _, part = name.partition(".lora_")
        if part == "A.weight" and f"{module}.lora_B.weight" in state:
            right, left = state.pop(name).flatten(1), state.pop(f"{module}.lora_B.weight").flatten(1)
        elif part == "embedding_A" and f"{module}.lora_embedding_B" in state:
            left, right = state.pop(name).T, state.pop(f"{module}.lora_embedding_B").T
        else:
            continue
        found[module] = LowRank(left.contiguous(), right.contiguous())
    if state:
        raise ModelError(f"{file} holds {min(state)}, which is no pair of low-rank matrices: write the adapter anew")
    return found


def load_with_adapter(directory: Path) -> "nn.Module":
    """The model in `directory` with its adapter, through plain `transformers` and `peft`: float32, eval.

    Raises `ModelError` unless every tensor of both files found its place and every parameter its tensor, or where peft
    would leave a matrix out without a word.
    """
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    place, base = directory / FOLDER, plain(directory)
    quantizer = getattr(base, "hf_quantizer", None)
    with quiet():
        if quantizer is not None:
            quantizer.compressor.decompress_model(base)
        model: Any = PeftModel.from_pretrained(base, str(place))
    written = {(tensor.name, tensor.shape) for tensor in stored_tensors(place)}
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    lost = sorted(name for name, _ in written ^ {(name, tuple(tensor.shape)) for name, tensor in state.items()})
    if lost:
        raise ModelError(f"{place}: these tensors did not load: {', '.join(lost[:5])}")
    for name, module in model.named_modules():
        if isinstance(module, NonDynamicallyQuantizableLinear) and name.endswith(".base_layer"):
            name = name.removeprefix("base_model.model.").removesuffix(".base_layer")
            raise ModelError(f"{place}: nn.MultiheadAttention reads {name} past the adapter: give its step no rank")
    ready: nn.Module = model.eval().requires_grad_(False)
    return ready


def _parts(layer: Layer, matrix: LowRank) -> dict[str, "Tensor"]:
    """The tensors that peft computes `left @ right` from, by their last names."""
    left, right = matrix.left, matrix.right
    if (left.shape[0], right.shape[1]) != (layer.rows, layer.columns):
        raise PlanError(
            f"layer {layer.path} is {layer.rows} x {layer.columns}, its low-rank matrix is "
            f"{left.shape[0]} x {right.shape[1]}"
        )
    if layer.kind == "linear":
        return {"lora_A.weight": right, "lora_B.weight": left}
    if layer.kind == "embedding":
        return {"lora_embedding_A": left.T, "lora_embedding_B": right.T}
    if layer.kind == "conv" and len(layer.shape) > 3:
        down, up = (matrix.rank, *layer.shape[1:]), (layer.rows, matrix.rank, *(1 for _ in layer.shape[2:]))
        return {"lora_A.weight": right.reshape(down), "lora_B.weight": left.reshape(up)}
    raise PlanError(
        f"layer {layer.path} is out of an adapter's reach, which covers linear and embedding layers and convolutions "
        "over images: give its step no rank"
    )


def _config(ranks: Mapping[str, int], base: str) -> dict[str, Any]:
    """`adapter_config.json`: alpha is the rank everywhere, so that peft's scale alpha / rank is 1."""
    largest = max(ranks.values())
    exact = {f"^{re.escape(module)}$": rank for module, rank in sorted(ranks.items())}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "r": largest,
        "lora_alpha": largest,
        "target_modules": sorted(ranks),
        "rank_pattern": exact,
        "alpha_pattern": exact,
    }
