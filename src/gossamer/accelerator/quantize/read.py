"""From transformers' modules to the float stacks: which numbers of a model stand where.

Nothing is guessed: what is not known is refused by name, and what has been read is compared with the model itself on
real inputs before it is used (`verify`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.accelerator.quantize.floating import Linear, Norm, Stack
from gossamer.accelerator.quantize.model import Example, FloatModel, without_gradients
from gossamer.accelerator.quantize.read_block import only, read_activation, read_block, read_linear, read_norm
from gossamer.accelerator.wiring import Wiring
from gossamer.core.errors import ModelError
from gossamer.models.open import Opened

PAIRS = ("CLIPModel", "SiglipModel", "Owlv2ForObjectDetection")
"""Models of two towers, of which one is read."""
POSITIONS = 2048
"""Rotary positions that are kept where none are asked for."""
_TOLERANCE = 2e-3
"""Largest difference between the model's logits and those of the stacks read from it, relative to the largest logit."""


def read_model(opened: Opened, positions: int | None = None, part: str | None = None) -> FloatModel:
    """The stacks of an opened model. `positions`: how many rotary positions its tables get. `part`: which tower of a
    model of two (CLIP, SigLIP, OWLv2), `vision` or `text`: all rows, normed and projected; pooling is the host's.

    Raises:
        ModelError: an architecture, block or operator that the engine does not have; the message names it.
    """
    readers = {
        "LlamaForCausalLM": _causal, "MistralForCausalLM": _causal, "Qwen2ForCausalLM": _causal,
        "LlavaForConditionalGeneration": _llava, "ViTForImageClassification": _classifier,
        "DeiTForImageClassification": _classifier, "BertForSequenceClassification": _bert,
        "RobertaForSequenceClassification": _bert, "CLIPVisionModel": _tower, "SiglipVisionModel": _tower,
        "CLIPVisionModelWithProjection": _tower,
    }  # fmt: skip
    kind = type(opened.model).__name__
    if kind in PAIRS:
        if part not in ("vision", "text"):
            raise ModelError(f"{opened.source} is a {kind}, two towers: name the part to quantise, vision or text")
        return (_text_part if part == "text" else _vision_part)(opened.model)
    if kind not in readers:
        raise ModelError(f"{opened.source} is a {kind}; the integer engine runs {', '.join((*readers, *PAIRS))}")
    if part is not None:
        raise ModelError(f"{opened.source} is a {kind}, which is quantised as a whole: leave the part out")
    return readers[kind](opened.model, positions)


def verify(model: FloatModel, opened: Opened, example: Example, part: str | None = None) -> None:
    """Compares the stacks with the model itself, or its `part`, on one example.

    Raises:
        ModelError: they differ, so something in the model has not been understood.
    """
    with torch.inference_mode():
        inputs = {name: value[None] if name == "input_ids" else value for name, value in example.items()}
        wanted = (_result(opened.model(**inputs)) if part is None else _rows_of(opened.model, part, inputs))[0]
    found = without_gradients(model, example)
    if found.shape != wanted.shape or not torch.allclose(found, wanted, atol=_TOLERANCE * float(wanted.abs().max())):
        raise ModelError(f"{opened.source} computes something that was not read from its modules: it is not quantised")


def _result(output: Any) -> Tensor:
    found: Tensor | None = next(
        (
            getattr(output, name, None)
            for name in ("logits", "image_embeds", "last_hidden_state")
            if hasattr(output, name)
        ),
        None,
    )
    if found is None:
        raise ModelError("the model returns neither logits nor states")
    return found


def _rows_of(model: Any, part: str, inputs: dict[str, Tensor]) -> Tensor:
    """What a tower's stack stands for, by the model's own modules."""
    tower, norm, head = _ends(model, part)
    name = "input_ids" if part == "text" else "pixel_values"
    states: Tensor = tower(**{name: inputs[name]}).last_hidden_state
    normed = part == "text" or "Siglip" in type(tower).__name__
    states = states if normed else norm(states)
    rows: Tensor = states if head is None else head(states)
    return rows


# ------------------------------------------------------------------------------------------------- architectures


def _causal(model: Any, positions: int | None) -> FloatModel:
    return FloatModel({"language": _decoder(model, model.model, positions)}, Wiring(text="language"))


def _llava(model: Any, positions: int | None) -> FloatModel:
    inner, config = model.model, model.config
    if config.vision_feature_select_strategy not in ("default", "full"):
        raise ModelError(f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} is not read")
    if not isinstance(config.vision_feature_layer, int):
        raise ModelError("vision_feature_layer names several layers: the projector reads one")
    names = ("linear_1", "act", "linear_2")
    projector = inner.multi_modal_projector
    only(projector, names)
    first, second = read_linear(projector.linear_1), read_linear(projector.linear_2)
    tower = inner.vision_tower
    layer = config.vision_feature_layer
    count = len(_layers(tower))
    vision = _vision(
        tower,
        blocks=layer if layer >= 0 else count + 1 + layer,
        final=None,
        projector=((first, read_activation(projector.act)),),
        head=second,
        drop=1 if config.vision_feature_select_strategy == "default" else 0,
    )
    text = _decoder(model, inner.language_model, positions)
    return FloatModel(
        {"vision": vision, "language": text},
        Wiring("vision", "language", int(config.image_token_id), _side(tower)),
    )


def _classifier(model: Any, _: int | None) -> FloatModel:
    tower = getattr(model, model.base_model_prefix)
    head = read_linear(model.classifier)
    stack = _vision(tower, len(_layers(tower)), read_norm(tower.layernorm), (), head)
    return FloatModel({"vision": stack}, Wiring("vision", side=_side(tower), counts="first"))


def _tower(model: Any, _: int | None) -> FloatModel:
    """A bare tower: rows of CLIP's last block, those of SigLIP's last norm, or CLIP's projected class token."""
    tower = getattr(model, "vision_model", model)
    if getattr(tower, "head", None) is not None:
        raise ModelError(f"{type(tower.head).__name__} is an operator that the integer engine does not have")
    head = getattr(model, "visual_projection", None)
    normed = head is not None or not hasattr(tower.embeddings, "class_embedding")
    final = read_norm(tower.post_layernorm) if normed else None
    stack = _vision(tower, len(_layers(tower)), final, (), None if head is None else read_linear(head))
    return FloatModel({"vision": stack}, Wiring("vision", side=_side(tower), counts="all" if head is None else "first"))


def _bert(model: Any, _: int | None) -> FloatModel:
    base = getattr(model, model.base_model_prefix)
    embeddings = base.embeddings
    only(embeddings, ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"))
    blocks = tuple(read_block(layer) for layer in base.encoder.layer)
    first = 0
    if "Roberta" in type(base).__name__:  # positions are counted from the padding token's number on
        first = model.config.pad_token_id + 1
    if base.pooler is not None:
        dense, activation, head = base.pooler.dense, read_activation(base.pooler.activation), model.classifier
    else:
        only(model.classifier, ("dense", "out_proj"))
        dense, activation, head = model.classifier.dense, "tanh", model.classifier.out_proj
    words = embeddings.word_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    stack = Stack(
        name="language",
        width=words.shape[1],
        blocks=blocks,
        table=words.float(),
        positions=embeddings.position_embeddings.weight[first:].float(),
        entry=read_norm(embeddings.LayerNorm),
        projector=((read_linear(dense), activation),),
        head=read_linear(head),
    )
    return FloatModel({"language": stack}, Wiring(text="language", counts="first"))


def _ends(model: Any, part: str) -> tuple[Any, Any, Any]:
    """A tower of a pair, its last norm, and the projection of its rows."""
    base = getattr(model, "owlv2", model)
    if part == "text":
        tower = base.text_model
        return tower, tower.final_layer_norm, getattr(base, "text_projection", getattr(tower, "head", None))
    tower = base.vision_model
    detects = base is not model  # the detection head reads the rows as they are
    return tower, tower.post_layernorm, None if detects else getattr(base, "visual_projection", None)


def _vision_part(model: Any) -> FloatModel:
    tower, norm, head = _ends(model, "vision")
    projection = None if head is None else read_linear(head)
    stack = _vision(tower, len(_layers(tower)), read_norm(norm), (), projection)
    return FloatModel({"vision": stack}, Wiring("vision", side=_side(tower)))


def _text_part(model: Any) -> FloatModel:
    tower, norm, head = _ends(model, "text")
    only(tower.embeddings, ("token_embedding", "position_embedding"))
    table = tower.embeddings.token_embedding.weight.float()
    stack = Stack(
        name="text",
        width=table.shape[1],
        blocks=tuple(read_block(layer, causal="Siglip" not in type(tower).__name__) for layer in _layers(tower)),
        table=table,
        positions=tower.embeddings.position_embedding.weight.float(),
        final=read_norm(norm),
        head=read_linear(head),
    )
    return FloatModel({"text": stack}, Wiring(text="text"))


# ---------------------------------------------------------------------------------------------------------- parts


def _decoder(model: Any, decoder: Any, positions: int | None) -> Stack:
    only(decoder, ("embed_tokens", "layers", "norm", "rotary_emb"))
    config = decoder.config
    longest = config.max_position_embeddings
    count = min(longest, POSITIONS) if positions is None else positions
    if not 1 <= count <= longest:
        raise ModelError(f"{count} positions are not possible: the model has {longest}")
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < count:
        raise ModelError(f"sliding_window {window} is an operator that the engine does not have: give fewer positions")
    rotary, factor = _rotary(decoder.rotary_emb, count)
    return Stack(
        name="language",
        width=config.hidden_size,
        blocks=tuple(read_block(layer, rotary, factor) for layer in decoder.layers),
        table=decoder.embed_tokens.weight.float(),
        final=read_norm(decoder.norm),
        head=read_linear(model.lm_head),
    )


def _rotary(module: Any, count: int) -> tuple[tuple[Tensor, Tensor], float]:
    """cos, sin (count, head / 2) of all positions, and the factor of scores where angles are scaled (YaRN)."""
    kind = getattr(module, "rope_type", "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(f"rotary embedding {kind!r} is an operator that the integer engine does not have")
    cosines, sines = module(torch.zeros(1), torch.arange(count)[None])
    half = cosines.shape[-1] // 2
    factor = float(cosines[0, 0, 0])
    return (cosines[0, :, :half].float() / factor, sines[0, :, :half].float() / factor), factor * factor


def _vision(
    tower: Any,
    blocks: int,
    final: Norm | None,
    projector: tuple[tuple[Linear, str | None], ...],
    head: Linear | None,
    drop: int = 0,
) -> Stack:
    """A tower up to its block number `blocks`."""
    embeddings = tower.embeddings
    conv = next(module for module in embeddings.modules() if isinstance(module, nn.Conv2d))
    if conv.kernel_size != conv.stride or conv.kernel_size[0] != conv.kernel_size[1] or conv.groups != 1:
        raise ModelError("patches that overlap are an operator that the integer engine does not have")
    tokens = [getattr(embeddings, name, None) for name in ("class_embedding", "cls_token", "distillation_token")]
    prefix = [token.reshape(1, -1) for token in tokens if token is not None]
    places = getattr(embeddings, "position_embeddings", None)
    places = embeddings.position_embedding.weight if places is None else places[0]
    entry = getattr(tower, "pre_layrnorm", getattr(tower, "pre_layernorm", None))
    return Stack(
        name="vision",
        width=conv.out_channels,
        blocks=tuple(read_block(layer) for layer in _layers(tower)[:blocks]),
        patch=Linear(conv.weight.flatten(1).float(), None if conv.bias is None else conv.bias.float()),
        prefix=torch.cat(prefix).float() if prefix else None,
        positions=places.float(),
        entry=None if entry is None else read_norm(entry),
        final=final,
        projector=projector,
        head=head,
        drop=drop,
    )


def _layers(tower: Any) -> Any:
    return tower.encoder.layers if hasattr(tower, "encoder") else tower.layers


def _side(tower: Any) -> int:
    return int(next(module for module in tower.embeddings.modules() if isinstance(module, nn.Conv2d)).stride[0])
