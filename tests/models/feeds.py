"""Inputs that make every tower of the tiny models run in one forward pass."""

from typing import Any

import torch
from torch import nn

IMAGE = 90


def inputs_for(name: str, model: nn.Module) -> dict[str, Any]:
    """Keyword arguments of a forward pass of two examples (one for tilings) through all of the model."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 80, (2, 7), generator=generator)
    pixels = torch.randn(2, 3, 32 if name == "owlv2" else 16, 32 if name == "owlv2" else 16, generator=generator)
    if name in ("clip", "siglip", "owlv2"):
        return {"input_ids": ids, "pixel_values": pixels}
    if name in ("vit", "deit"):
        return {"pixel_values": pixels}
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 32, generator=generator), "decoder_input_ids": ids}
    if name in ("llava", "paligemma"):
        return {"input_ids": _with_images(ids, 4), "pixel_values": pixels}
    if name in ("idefics3", "smolvlm"):
        return {"input_ids": _with_images(ids, 1), "pixel_values": pixels[:, None]}
    if name in ("llava_next", "llava_onevision"):
        tiles, sizes = torch.randn(1, 3, 3, 16, 16, generator=generator), torch.tensor([[16, 32]])
        with torch.no_grad():
            found = model.model.get_image_features(pixel_values=tiles, image_sizes=sizes)
        features = getattr(found, "pooler_output", found)
        count = sum(part.shape[0] for part in features)
        return {"input_ids": _with_images(ids[:1], count), "pixel_values": tiles, "image_sizes": sizes}
    if name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        patches = torch.randn(32, 3 * 2 * 4 * 4, generator=generator)
        grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
        text = _with_images(ids, 4)
        return {
            "input_ids": text,
            "pixel_values": patches,
            "image_grid_thw": grid,
            "mm_token_type_ids": (text == IMAGE).int(),
        }
    return {"input_ids": ids}


def _with_images(ids: torch.Tensor, count: int) -> torch.Tensor:
    places = torch.full((ids.shape[0], count), IMAGE)
    return torch.cat([ids[:, :2], places, ids[:, 2:]], 1)
