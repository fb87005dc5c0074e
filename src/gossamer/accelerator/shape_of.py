"""The shape of a model by its name: a published one, an integer model on disk, or a checkpoint's config."""

from pathlib import Path
from typing import Any

from gossamer.accelerator.integer import Stack
from gossamer.accelerator.integer_files import DESCRIPTION, load_integer
from gossamer.accelerator.shapes import SHAPES, Shape
from gossamer.core.errors import ModelError, SettingError

DECODER = {"gated": True, "rotary": True, "causal": True, "centred": False}
KINDS: dict[str, dict[str, bool]] = {
    "llama": DECODER, "mistral": DECODER, "qwen2": DECODER,
    "bert": {"post": True}, "roberta": {"post": True},
    "vit": {}, "deit": {}, "clip_vision_model": {}, "siglip_vision_model": {}, "owlv2_vision_model": {},
    "clip_text_model": {"causal": True}, "siglip_text_model": {}, "owlv2_text_model": {"causal": True},
}  # fmt: skip
"""What blocks are like, by a config's `model_type`: the architectures that `quantize` reads."""


def shape_of(ref: str, part: str | None = None) -> Shape:
    """The shape of `ref`: a name in `SHAPES`, a directory that quantize wrote, or what `open_model` takes; of the last
    only the config is read.

    Args:
        ref: the model.
        part: `vision` or `text`, of a model that has both; by default text.

    Raises:
        GossamerError: what cannot be opened, has no such part, or blocks that the engine does not have.
    """
    if part not in (None, "vision", "text"):
        raise SettingError(f"part is {part!r}: vision or text")
    if ref in SHAPES:
        return SHAPES[ref]
    path = Path(ref).expanduser()
    if (path / DESCRIPTION).is_file():
        model = load_integer(path)
        wiring = model.wiring
        name = wiring.vision if part == "vision" else wiring.text if part == "text" else wiring.text or wiring.vision
        if name is None:
            raise ModelError(f"{ref} has no part {part}; its stacks are {', '.join(model.stacks)}")
        return of_stack(model.stacks[name])
    from gossamer.models.open import open_model

    return of_config(open_model(ref, weights=False).config, ref, part)


def of_stack(stack: Stack) -> Shape:
    """The shape of a stack's blocks, which are alike.

    Raises:
        ModelError: blocks with cross attention.
    """
    block = stack.blocks[0]
    if block.cross is not None:
        raise ModelError(f"{stack.name} has cross attention, which a shape does not describe")
    attention = block.attention
    return Shape(
        stack.name, len(stack.blocks), stack.width, attention.heads, attention.kv_heads, len(block.mlp.up.bias),
        attention.head, gated=block.mlp.gate is not None, rotary=attention.rotary is not None,
        causal=attention.causal, post=block.post, centred=block.attention_norm.centred,
    )  # fmt: skip


def of_config(config: Any, name: str, part: str | None = None) -> Shape:
    """The shape that a transformers config describes.

    Raises:
        ModelError: a part that is not there, or a kind of block that the engine does not have.
    """
    towers = {key: getattr(config, f"{key}_config", None) for key in ("text", "vision")}
    found = config if towers == {"text": None, "vision": None} else towers[part or "text"]
    if found is None or (part is not None and found is config):
        raise ModelError(f"{name} is one tower, {config.model_type}: leave the part out")
    kind = found.model_type
    if kind not in KINDS:
        raise ModelError(f"{name} has blocks of {kind}; the integer engine runs {', '.join(KINDS)}")
    heads = found.num_attention_heads
    return Shape(
        name, found.num_hidden_layers, found.hidden_size, heads, getattr(found, "num_key_value_heads", None) or heads,
        found.intermediate_size, getattr(found, "head_dim", None) or found.hidden_size // heads, **KINDS[kind],
    )  # fmt: skip
