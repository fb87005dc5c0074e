"""One forward pass of any model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import DeviceError

if TYPE_CHECKING:
    import torch
    from torch import nn


def forward(model: "nn.Module", inputs: Mapping[str, Any]) -> Any:
    """The model's output, without a cache unless `inputs` ask for one; gradients are taken if they are on.

    Tensors among the inputs are brought to the model's device.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    extra = {"use_cache": False} if hasattr(text, "use_cache") else {}
    return model(**{**extra, **placed(inputs, device_of(model))})


def device_of(model: "nn.Module") -> "torch.device":
    """Where the model computes: where its first parameter is, the processor if it has none."""
    import torch

    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def floats_of(model: "nn.Module") -> "torch.dtype":
    """The type of floats that the model computes in: that of its first parameter of floats, float32 if it has none."""
    import torch

    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)


def multiplies_bfloat16(device: "torch.device") -> bool:
    """Whether the device has instructions for products of bfloat16: they are faster there than those of float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def named_device(on: str) -> "torch.device":
    """The device of a name such as `cpu` or `cuda:1`. Raises `DeviceError` if it is not at hand."""
    import torch

    try:
        torch.empty(0, device=on).cpu()  # fails on `meta` too, which computes nothing
        return torch.device(on)
    except (RuntimeError, AssertionError):
        more = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        raise DeviceError(f"cannot compute on {on!r}: this machine has {', '.join(['cpu', *more])}") from None


def place_ids(config: Any) -> set[int]:
    """The token ids that stand where images, videos and sounds go."""
    names = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "audio_token_index")
    return {getattr(config, name) for name in names if isinstance(getattr(config, name, None), int)}


def placed(inputs: Mapping[str, Any], device: "torch.device", floats: "torch.dtype | None" = None) -> dict[str, Any]:
    """The inputs with their tensors on `device`, floats as `floats` if it is given."""
    import torch

    def put(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device, floats if floats is not None and value.is_floating_point() else value.dtype)

    return {name: put(value) for name, value in inputs.items()}
