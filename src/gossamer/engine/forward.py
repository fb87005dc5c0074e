"""One forward pass of any model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def forward(model: "nn.Module", inputs: Mapping[str, Any]) -> Any:
    """The model's output, without a cache unless `inputs` ask for one; gradients are taken if they are on."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    extra = {"use_cache": False} if hasattr(text, "use_cache") else {}
    return model(**{**extra, **inputs})
