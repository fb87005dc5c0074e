"""The float model, run with an eye on every number that the integer model rounds.

One forward pass serves three ends: with a `look` that changes nothing it is the model itself, with one that takes notes
it is calibration, with one that rounds it is the fake-quantised twin.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.accelerator.quantize.floating import ACTIVATIONS, Attention, Linear, Mlp, Norm, Stack

Look = Callable[[str, Tensor], Tensor]
"""(point, values) → values."""


@dataclass(frozen=True)
class Point:
    """A place where the integer model rounds to `bits`. `activation` is what the rounded values go through."""

    name: str
    bits: int = 8
    activation: str | None = None


def unchanged(_: str, values: Tensor) -> Tensor:
    """Looks and leaves everything as it is."""
    return values


def points(stack: Stack) -> Iterator[Point]:
    """Every point of a stack, in order."""
    if stack.patch is not None:
        yield Point("patches")
    if stack.entry is not None:
        yield Point("entry", 16)
    yield Point("residual", 16)
    for number, block in enumerate(stack.blocks):
        at = f"blocks.{number}"
        for name in ("input", "query", "key", "value", "attended"):
            yield Point(f"{at}.attention.{name}")
        yield Point(f"{at}.mlp.input")
        if block.mlp.gate is None:
            yield Point(f"{at}.mlp.up", activation=block.mlp.activation)
            yield Point(f"{at}.mlp.activated")
        else:
            yield Point(f"{at}.mlp.gate", activation=block.mlp.activation)
            for name in ("activated", "up", "product"):
                yield Point(f"{at}.mlp.{name}")
    yield Point("output")
    for number, (_, activation) in enumerate(stack.projector):
        yield Point(f"projector.{number}.sum", activation=activation)
        if activation is not None:
            yield Point(f"projector.{number}")
    if stack.head is not None:
        yield Point("logits", 16)


def look_up(stack: Stack, tokens: Tensor) -> Tensor:
    """Rows (…, S, width) of token ids (…, S)."""
    if stack.table is None:
        raise AssertionError(f"stack {stack.name} has no table")
    return stack.table[tokens]


def patch_rows(stack: Stack, patches: Tensor, look: Look = unchanged) -> Tensor:
    """Rows (…, prefix + P, width) of patches (…, P, K)."""
    if stack.patch is None:
        raise AssertionError(f"stack {stack.name} reads no patches")
    rows = _linear(stack.patch, look("patches", patches))
    if stack.prefix is None:
        return rows
    return torch.cat([stack.prefix.expand(*rows.shape[:-2], -1, -1), rows], -2)


def forward(stack: Stack, rows: Tensor, look: Look = unchanged) -> Tensor:
    """What the stack makes of rows (…, S, width): logits, projected rows, or the last norm's."""
    x = rows
    if stack.positions is not None:
        x = look(_entry(stack), look(_entry(stack), x) + look(_entry(stack), stack.positions[: x.shape[-2]]))
    if stack.entry is not None:
        x = _norm(stack.entry, look("entry", x))
    fine, x = x, look("residual", x)
    for number, block in enumerate(stack.blocks):
        at = f"blocks.{number}"
        for name, norm in (("attention", block.attention_norm), ("mlp", block.mlp_norm)):
            read = look(f"{at}.{name}.input", fine if block.post else _norm(norm, x))
            part = (
                _attention(f"{at}.attention", block.attention, read, look)
                if name == "attention"
                else _mlp(f"{at}.mlp", block.mlp, read, look)
            )
            x = look("residual", x + part)
            if block.post:
                fine = _norm(norm, x)
                x = look("residual", fine)
    x = look("output", (x if stack.final is None else _norm(stack.final, x))[..., stack.drop :, :])
    for number, (layer, activation) in enumerate(stack.projector):
        x = look(f"projector.{number}.sum", _linear(layer, x))
        if activation is not None:
            x = look(f"projector.{number}", ACTIVATIONS[activation](x))
    return x if stack.head is None else look("logits", _linear(stack.head, x))


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embedding of adjacent columns: x (…, S, head), tables (S, head / 2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosines - odd * sines, even * sines + odd * cosines], -1).flatten(-2)


def _entry(stack: Stack) -> str:
    """The point whose scale rows have on the way in."""
    return "entry" if stack.entry is not None else "residual"


def _linear(layer: Linear, x: Tensor) -> Tensor:
    return functional.linear(x, layer.weight, layer.bias)


def _norm(norm: Norm, x: Tensor) -> Tensor:
    if norm.centred:
        return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.epsilon)
    return functional.rms_norm(x, x.shape[-1:], norm.weight, norm.epsilon)


def _attention(at: str, attention: Attention, x: Tensor, look: Look) -> Tensor:
    def heads(layer: Linear) -> Tensor:
        return _linear(layer, x).reshape(*x.shape[:-1], -1, attention.head).transpose(-2, -3)

    query, key, value = heads(attention.query), heads(attention.key), heads(attention.value)
    length = x.shape[-2]
    if attention.rotary is not None:
        cosines, sines = (table[:length] for table in attention.rotary)
        query, key = rotate(query, cosines, sines), rotate(key, cosines, sines)
    query, key, value = look(f"{at}.query", query), look(f"{at}.key", key), look(f"{at}.value", value)
    out = functional.scaled_dot_product_attention(
        query, key, value, is_causal=attention.causal, scale=attention.scaling, enable_gqa=True
    )
    return _linear(attention.output, look(f"{at}.attended", out.transpose(-2, -3).flatten(-2)))


def _mlp(at: str, mlp: Mlp, x: Tensor, look: Look) -> Tensor:
    act = ACTIVATIONS[mlp.activation]
    if mlp.gate is None:
        return _linear(mlp.down, look(f"{at}.activated", act(look(f"{at}.up", _linear(mlp.up, x)))))
    gate = look(f"{at}.activated", act(look(f"{at}.gate", _linear(mlp.gate, x))))
    return _linear(mlp.down, look(f"{at}.product", gate * look(f"{at}.up", _linear(mlp.up, x))))
