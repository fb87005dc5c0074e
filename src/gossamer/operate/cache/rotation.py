"""Moving keys to other positions: rotary embeddings turn with the position, so turning further moves a key."""

import sys
from typing import Any

import torch
from torch import Tensor

from gossamer.core.errors import ModelError

_STRETCHING = ("dynamic", "longrope")


class Rotation:
    """How one model's rotary embeddings turn keys, by the model's own code (Su et al. 2021, arXiv:2104.09864).

    Raises `ModelError` for a model whose keys cannot be moved.
    """

    def __init__(self, model: Any) -> None:
        text = model.config.get_text_config(decoder=True)
        parameters = getattr(text, "rope_parameters", None) or {}
        name = type(model).__name__
        if "mrope_section" in parameters:
            raise ModelError(
                f"{name} counts positions along time, height and width: its keys keep theirs (positions=keep)"
            )
        if parameters.get("rope_type") in _STRETCHING:
            raise ModelError(f"{name} stretches its positions with the length: its keys keep theirs (positions=keep)")
        parts = list(model.modules())
        turning = [part for part in parts if getattr(part, "config", None) is text and hasattr(part, "inv_freq")]
        homes = [sys.modules[type(part).__module__] for part in parts if is_attention(part, text)]
        turns = {id(home): getattr(home, "apply_rotary_pos_emb", None) for home in homes}
        if len(turning) != 1 or len(turns) != 1 or None in turns.values():
            raise ModelError(f"{name} has no rotary positions, or several kinds: its keys keep theirs (positions=keep)")
        self._angles: Any = turning[0]
        self._turn: Any = next(iter(turns.values()))

    def moved(self, keys: Tensor, by: Tensor) -> Tensor:
        """Keys (1, heads, rows, channels) as they would be `by` (heads, rows) positions later (negative: earlier)."""
        cos, sin = self._angles(keys.float(), position_ids=by)
        scale = getattr(self._angles, "attention_scaling", 1.0)
        width = cos.shape[-1]
        turned, rest = torch.split(keys[0, :, None].float(), [width, keys.shape[-1] - width], -1)
        turned = self._turn(turned, turned, cos.float() / scale, sin.float() / scale)[1]
        return torch.cat([turned, rest], -1)[:, 0][None].to(keys.dtype)


def is_attention(part: Any, text: Any) -> bool:
    """Whether a module attends to past tokens of the model with the text config `text`."""
    return getattr(part, "config", None) is text and hasattr(part, "layer_idx") and hasattr(part, "scaling")
