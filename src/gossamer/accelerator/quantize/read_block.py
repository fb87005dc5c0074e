"""A transformer block's numbers, from transformers' modules: where each family keeps them.

A block is read if its class is in `BLOCKS`; an operator that it holds besides is refused by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.accelerator.quantize.floating import ACTIVATIONS, Attention, Block, Linear, Mlp, Norm
from gossamer.core.errors import ModelError


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


def read_block(
    block: nn.Module,
    rotary: tuple[Tensor, Tensor] | None = None,
    factor: float = 1.0,
    causal: bool = False,
) -> Block:
    """One block. `rotary`: cos, sin (positions, head / 2). `factor`: of scores. `causal`: of encoder classes too.

    Raises:
        ModelError: a block, operator, norm or activation that the engine does not have; the message names it.
    """
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
    query, key = read_linear(part[names.query]), read_linear(part[names.key])
    if rotary is not None:
        if 2 * rotary[0].shape[1] != head:
            raise ModelError(f"rotary embedding of {2 * rotary[0].shape[1]} of {head} columns is not possible: of all")
        query, key = _pairs(query, head), _pairs(key, head)
    return Block(
        attention_norm=read_norm(part[names.attention_norm]),
        attention=Attention(
            query=query,
            key=key,
            value=read_linear(part[names.value]),
            output=read_linear(part[names.output]),
            heads=len(query.weight) // head,
            kv_heads=len(key.weight) // head,
            head=head,
            scaling=float(scaling) * factor,
            rotary=rotary,
            causal=names.causal or causal,
        ),
        mlp_norm=read_norm(part[names.mlp_norm]),
        mlp=Mlp(
            up=read_linear(part[names.up]),
            down=read_linear(part[names.down]),
            activation=read_activation(part[names.activation]),
            gate=read_linear(part[names.gate]) if names.gate else None,
        ),
        post=names.post,
    )


def _pairs(layer: Linear, head: int) -> Linear:
    """Rows from transformers' order (columns i and i + head/2 turn together) to adjacent ones; scores do not change."""
    order = torch.arange(len(layer.weight)).reshape(-1, 2, head // 2).transpose(1, 2).flatten()
    return Linear(layer.weight[order], None if layer.bias is None else layer.bias[order])


def read_linear(module: Any) -> Linear:
    """A plain linear layer."""
    if type(module).__name__ != "Linear":
        raise ModelError(f"{type(module).__name__} stands where the integer engine has a linear layer")
    return Linear(module.weight.float(), None if module.bias is None else module.bias.float())


def read_norm(module: Any) -> Norm:
    """A layer norm or RMS norm."""
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


def read_activation(module: Any) -> str:
    """Its name in `ACTIVATIONS`."""
    kind = type(module).__name__
    name = _ACTIVATIONS.get(kind, "")
    if name not in ACTIVATIONS:
        raise ModelError(f"{kind} is an activation without a table; there are {', '.join(_ACTIVATIONS)}")
    return name


def only(module: nn.Module, names: tuple[str, ...]) -> None:
    """Refuses a part that is not in `names`."""
    for name, part in module.named_children():
        if name not in names and type(part).__name__ not in _HARMLESS:
            kind = f"{name} ({type(part).__name__}) of {type(module).__name__}"
            raise ModelError(f"{kind} is an operator that the integer engine does not have")


def _leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, part in module.named_modules():
        if not list(part.children()) and type(part).__name__ not in _HARMLESS:
            yield path, part
