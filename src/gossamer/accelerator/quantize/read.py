"""From transformers' modules to the float stacks: which numbers of a model stand where.

Nothing is guessed. A block is read if its class is in `BLOCKS`; what it holds besides is refused by name; and what has
been read is compared with the model itself on real inputs before it is used (`verify`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.accelerator.quantize.floating import ACTIVATIONS, Attention, Block, Linear, Mlp, Norm, Stack
from gossamer.accelerator.quantize.model import Example, FloatModel, without_gradients
from gossamer.accelerator.wiring import Wiring
from gossamer.core.errors import ModelError
from gossamer.models.open import Opened

POSITIONS = 2048
"""Rotary positions that are kept where none are asked for."""
_TOLERANCE = 2e-3
"""Largest difference between the model's logits and those of the stacks read from it, relative to the largest logit."""


@dataclass(frozen=True)
class Names:
    """Where the parts of a block are, as paths below it."""

    attention: str
    query: str
    key: str
    value: str
    output: str
    attention_norm: str
    mlp_norm: str
    up: str
    down: str
    activation: str
    gate: str | None = None
    post: bool = False
    causal: bool = False


_DECODER = Names(
    "self_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "input_layernorm",
    "post_attention_layernorm", "mlp.up_proj", "mlp.down_proj", "mlp.act_fn", gate="mlp.gate_proj", causal=True,
)  # fmt: skip
_CLIP = Names(
    "self_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm1",
    "layer_norm2", "mlp.fc1", "mlp.fc2", "mlp.activation_fn",
)  # fmt: skip
_VIT = Names(
    "attention", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "layernorm_before",
    "layernorm_after", "mlp.fc1", "mlp.fc2", "mlp.activation_fn",
)  # fmt: skip
_BERT = Names(
    "attention.self", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "output.LayerNorm", "intermediate.dense", "output.dense",
    "intermediate.intermediate_act_fn", post=True,
)  # fmt: skip
BLOCKS: dict[str, Names] = {
    **dict.fromkeys(("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"), _DECODER),
    **dict.fromkeys(("CLIPEncoderLayer", "SiglipEncoderLayer", "Owlv2EncoderLayer"), _CLIP),
    **dict.fromkeys(("ViTLayer", "DeiTLayer"), _VIT),
    **dict.fromkeys(("BertLayer", "RobertaLayer"), _BERT),
}
"""Block classes that are read."""
_ACTIVATIONS = {
    "SiLUActivation": "silu", "SiLU": "silu", "GELUActivation": "gelu", "GELU": "gelu", "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh", "QuickGELUActivation": "quick_gelu", "ReLU": "relu", "Tanh": "tanh",
}  # fmt: skip
_NORMS = {"LayerNorm": True, "LlamaRMSNorm": False, "MistralRMSNorm": False, "Qwen2RMSNorm": False}
_HARMLESS = ("Dropout", "ModuleList", "Identity")


def read_model(opened: Opened, positions: int | None = None) -> FloatModel:
    """The stacks of an opened model. `positions`: how many rotary positions its tables get.

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
    if kind not in readers:
        raise ModelError(f"{opened.source} is a {kind}; the integer engine runs {', '.join(readers)}")
    return readers[kind](opened.model, positions)


def verify(model: FloatModel, opened: Opened, example: Example) -> None:
    """Compares the stacks with the model itself on one example.

    Raises:
        ModelError: they differ, so something in the model has not been understood.
    """
    with torch.inference_mode():
        inputs = {name: value[None] if name == "input_ids" else value for name, value in example.items()}
        wanted = _result(opened.model(**inputs))[0]
    found = without_gradients(model, example)
    if found.shape != wanted.shape or not torch.allclose(found, wanted, atol=_TOLERANCE * float(wanted.abs().max())):
        raise ModelError(f"{opened.source} computes something that was not read from its modules: it is not quantised")


def _result(output: Any) -> Tensor:
    found = next(
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
    _only(projector, names)
    first, second = _linear(projector.linear_1), _linear(projector.linear_2)
    tower = inner.vision_tower
    layer = config.vision_feature_layer
    count = len(_layers(tower))
    vision = _vision(
        tower,
        blocks=layer if layer >= 0 else count + 1 + layer,
        final=None,
        projector=((first, _activation(projector.act)),),
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
    head = _linear(model.classifier)
    stack = _vision(tower, len(_layers(tower)), _norm(tower.layernorm), (), head)
    return FloatModel({"vision": stack}, Wiring("vision", side=_side(tower), counts="first"))


def _tower(model: Any, _: int | None) -> FloatModel:
    """A bare tower: rows of CLIP's last block, those of SigLIP's last norm, or CLIP's projected class token."""
    tower = getattr(model, "vision_model", model)
    if getattr(tower, "head", None) is not None:
        raise ModelError(f"{type(tower.head).__name__} is an operator that the integer engine does not have")
    head = getattr(model, "visual_projection", None)
    normed = head is not None or not hasattr(tower.embeddings, "class_embedding")
    final = _norm(tower.post_layernorm) if normed else None
    stack = _vision(tower, len(_layers(tower)), final, (), None if head is None else _linear(head))
    return FloatModel({"vision": stack}, Wiring("vision", side=_side(tower), counts="all" if head is None else "first"))


def _bert(model: Any, _: int | None) -> FloatModel:
    base = getattr(model, model.base_model_prefix)
    embeddings = base.embeddings
    _only(embeddings, ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"))
    blocks = tuple(_block(layer) for layer in base.encoder.layer)
    first = 0
    if "Roberta" in type(base).__name__:  # positions are counted from the padding token's number on
        first = model.config.pad_token_id + 1
    if base.pooler is not None:
        dense, activation, head = base.pooler.dense, _activation(base.pooler.activation), model.classifier
    else:
        _only(model.classifier, ("dense", "out_proj"))
        dense, activation, head = model.classifier.dense, "tanh", model.classifier.out_proj
    words = embeddings.word_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    stack = Stack(
        name="language",
        width=words.shape[1],
        blocks=blocks,
        table=words.float(),
        positions=embeddings.position_embeddings.weight[first:].float(),
        entry=_norm(embeddings.LayerNorm),
        projector=((_linear(dense), activation),),
        head=_linear(head),
    )
    return FloatModel({"language": stack}, Wiring(text="language", counts="first"))


# ---------------------------------------------------------------------------------------------------------- parts


def _decoder(model: Any, decoder: Any, positions: int | None) -> Stack:
    _only(decoder, ("embed_tokens", "layers", "norm", "rotary_emb"))
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
        blocks=tuple(_block(layer, rotary, factor) for layer in decoder.layers),
        table=decoder.embed_tokens.weight.float(),
        final=_norm(decoder.norm),
        head=_linear(model.lm_head),
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
        blocks=tuple(_block(layer) for layer in _layers(tower)[:blocks]),
        patch=Linear(conv.weight.flatten(1).float(), None if conv.bias is None else conv.bias.float()),
        prefix=torch.cat(prefix).float() if prefix else None,
        positions=places.float(),
        entry=None if entry is None else _norm(entry),
        final=final,
        projector=projector,
        head=head,
        drop=drop,
    )


def _block(block: nn.Module, rotary: tuple[Tensor, Tensor] | None = None, factor: float = 1.0) -> Block:
    kind = type(block).__name__
    if kind not in BLOCKS:
        raise ModelError(f"{kind} is a block that the integer engine does not run; it runs {', '.join(BLOCKS)}")
    names = BLOCKS[kind]
    paths = [
        names.query, names.key, names.value, names.output, names.attention_norm, names.mlp_norm, names.up, names.down,
        names.activation, *([names.gate] if names.gate else []),
    ]  # fmt: skip
    for path, module in _leaves(block):
        if path not in paths:
            raise ModelError(f"{path} ({type(module).__name__}) of {kind} is an operator that the engine does not have")
    part = {path: block.get_submodule(path) for path in paths}
    attention: Any = block.get_submodule(names.attention)
    head = getattr(attention, "head_dim", None) or attention.attention_head_size
    scaling = getattr(attention, "scaling", None) or attention.scale
    query, key = _linear(part[names.query]), _linear(part[names.key])
    if rotary is not None:
        if 2 * rotary[0].shape[1] != head:
            raise ModelError(f"rotary embedding of {2 * rotary[0].shape[1]} of {head} columns is not possible: of all")
        query, key = _pairs(query, head), _pairs(key, head)
    return Block(
        attention_norm=_norm(part[names.attention_norm]),
        attention=Attention(
            query=query,
            key=key,
            value=_linear(part[names.value]),
            output=_linear(part[names.output]),
            heads=len(query.weight) // head,
            kv_heads=len(key.weight) // head,
            head=head,
            scaling=float(scaling) * factor,
            rotary=rotary,
            causal=names.causal,
        ),
        mlp_norm=_norm(part[names.mlp_norm]),
        mlp=Mlp(
            up=_linear(part[names.up]),
            down=_linear(part[names.down]),
            activation=_activation(part[names.activation]),
            gate=_linear(part[names.gate]) if names.gate else None,
        ),
        post=names.post,
    )


def _pairs(layer: Linear, head: int) -> Linear:
    """Rows from transformers' order (columns i and i + head/2 turn together) to adjacent ones; scores do not change."""
    order = torch.arange(len(layer.weight)).unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten()
    return Linear(layer.weight[order], None if layer.bias is None else layer.bias[order])


def _linear(module: Any) -> Linear:
    if type(module).__name__ != "Linear":
        raise ModelError(f"{type(module).__name__} stands where the integer engine has a linear layer")
    return Linear(module.weight.float(), None if module.bias is None else module.bias.float())


def _norm(module: Any) -> Norm:
    kind = type(module).__name__
    if kind not in _NORMS:
        raise ModelError(f"{kind} is a norm that the integer engine does not have; it has {', '.join(_NORMS)}")
    epsilon = getattr(module, "variance_epsilon", None)
    bias = getattr(module, "bias", None)
    return Norm(
        module.weight.float(),
        None if bias is None else bias.float(),
        float(module.eps if epsilon is None else epsilon),
        _NORMS[kind],
    )


def _activation(module: Any) -> str:
    kind = type(module).__name__
    name = _ACTIVATIONS.get(kind, "")
    if name not in ACTIVATIONS:
        raise ModelError(f"{kind} is an activation without a table; there are {', '.join(_ACTIVATIONS)}")
    return name


def _layers(tower: Any) -> Any:
    return tower.encoder.layers if hasattr(tower, "encoder") else tower.layers


def _side(tower: Any) -> int:
    return int(next(module for module in tower.embeddings.modules() if isinstance(module, nn.Conv2d)).stride[0])


def _only(module: nn.Module, names: tuple[str, ...]) -> None:
    """Refuses a part that is not in `names`."""
    for name, part in module.named_children():
        if name not in names and type(part).__name__ not in _HARMLESS:
            kind = f"{name} ({type(part).__name__}) of {type(module).__name__}"
            raise ModelError(f"{kind} is an operator that the integer engine does not have")


def _leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, part in module.named_modules():
        if not list(part.children()) and type(part).__name__ not in _HARMLESS:
            yield path, part
