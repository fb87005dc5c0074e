"""Multiply-accumulates of a forward pass, counted from shapes: matrices, and attention inside a tower."""

from dataclasses import dataclass
from typing import Any

from gossamer.models.hierarchy import Hierarchy, Layer, Modality

REFERENCE_PIXELS = 448
"""Side of the square image that is counted for where the model takes images of any size."""


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates. None where the model has no such part.

    `per_token`: the language (or text) blocks and the head for one token; attention scores, which grow with the
    context, are left out. `per_image`: the vision tower with its attention, the projector, and what else runs once for
    each image.
    `per_audio_window`: the audio tower for one full window. `basis` says in words what was counted. `image_tokens` and
    `audio_tokens` are the positions of the towers for one image and one window, `image_states` those that the language
    reads of an image.
    """

    per_token: int | None
    per_image: int | None
    per_audio_window: int | None
    basis: str
    image_tokens: int | None = None
    image_states: int | None = None
    audio_tokens: int | None = None


def work_of(hierarchy: Hierarchy, config: Any) -> Work:
    """Counts the work of a model from its hierarchy and config."""
    parts = {part.name: part for part in hierarchy.modalities}
    language = parts.get("language") or parts.get("text")
    vision, audio = parts.get("vision"), parts.get("audio")
    head = [layer for part in hierarchy.modalities if part.name == "head" for layer in part.layers]
    generates = "language" in parts
    per_token = None
    if language is not None:
        active = active_share(config)
        per_token = sum(_matrix_macs(layer, active) for block in language.blocks for layer in block.layers)
        per_token += sum(_matrix_macs(layer, active) for layer in head) if generates else 0
    basis = ["matrices; attention scores left out per token"] if language is not None else []
    per_image = image_tokens = image_states = None
    if vision is not None:
        grid = _grid(config)
        per_image = _tower(vision, grid.patches, grid.tokens, _width(config, "vision_config"))
        projected = grid.tokens // grid.merge if grid.merge > 1 else grid.patches
        image_tokens, image_states = grid.tokens, projected if generates else None
        projector = parts.get("projector")
        if projector is not None and generates:
            per_image += projected * sum(_matrix_macs(layer) for layer in projector.layers)
        elif projector is not None:
            per_image += sum(_matrix_macs(layer) for layer in projector.layers if "visual" in layer.path)
        if not generates:
            per_image += (grid.patches if "owl" in hierarchy.family else 1) * sum(_matrix_macs(layer) for layer in head)
        basis.append(f"one image of {grid.side} x {grid.side} pixels as {grid.tokens} tokens, attention counted")
    per_window = tokens = None
    if audio is not None:
        tokens = int(getattr(config, "max_source_positions", 1500))
        per_window = _tower(audio, 2 * tokens, tokens, int(getattr(config, "d_model", 0)))
        basis.append(f"one audio window of {tokens} positions, attention counted")
    return Work(per_token, per_image, per_window, "; ".join(basis), image_tokens, image_states, tokens)


@dataclass(frozen=True)
class _Grid:
    side: int
    patches: int
    tokens: int
    merge: int


def _grid(config: Any) -> _Grid:
    """Patches and tokens of one image; `merge` patches become one projected token."""
    vision = getattr(config, "vision_config", config)
    patch = _first(getattr(vision, "patch_size", 14))
    side = _first(getattr(vision, "image_size", None) or REFERENCE_PIXELS)
    patches = (side // patch) ** 2
    extra = 1 if str(getattr(vision, "model_type", "")).startswith(("clip", "owlv", "vit", "dinov2")) else 0
    extra = 2 if getattr(vision, "model_type", "") == "deit" else extra
    merge = int(getattr(vision, "spatial_merge_size", 1) or 1) ** 2
    merge = max(merge, int(getattr(config, "scale_factor", 1) or 1) ** 2)
    return _Grid(side, patches, patches + extra, merge)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)


def _width(config: Any, section: str) -> int:
    part = getattr(config, section, config)
    return int(getattr(part, "embed_dim", None) or getattr(part, "hidden_size", 0) or 0)


def _tower(part: Modality, positions: int, tokens: int, width: int) -> int:
    """Blocks on every token with full attention; convolutions (the first of which sees `positions`) on the rest."""
    inside = tokens * sum(_matrix_macs(layer) for block in part.blocks for layer in block.layers)
    attention = 2 * tokens * tokens * width * len(part.blocks)
    convolutions = [layer for layer in part.layers if layer.kind == "conv"]
    outside = 0
    for index, layer in enumerate(convolutions):
        outside += (positions if index == 0 else tokens) * layer.rows * layer.columns
    outside += sum(_matrix_macs(layer) for layer in part.layers if layer.kind == "linear")
    return inside + attention + outside


def _matrix_macs(layer: Layer, active: float = 1.0) -> int:
    """Multiply-accumulates for one token: none for a table, the active share for experts."""
    if layer.kind == "embedding":
        return 0
    count = layer.rows * layer.columns
    return round(count * active) if layer.kind == "expert" else count


def active_share(config: Any) -> float:
    """The share of a model's experts that a token runs; 1 where there are none."""
    text = getattr(config, "text_config", config)
    total = next((n for key in ("num_local_experts", "num_experts") if (n := getattr(text, key, None))), None)
    return int(getattr(text, "num_experts_per_tok", total)) / int(total) if total else 1.0
