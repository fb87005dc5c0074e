"""Float stack and scales → integer stack: every scale becomes a multiplier and a shift, every function a table.

A product's sum has scale `s_in · s_row`; it becomes `s_out` by a dyadic multiplier. Norms are free of the scale of what
they read but for epsilon. The softmax's scale, in 1/64 octaves, carries the attention's scaling and log2 e.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.accelerator import integer
from gossamer.accelerator.golden.arithmetic import NORM_FRACTION, OCTAVE, dyadic
from gossamer.accelerator.quantize.calibrate import Scales
from gossamer.accelerator.quantize.floating import ACTIVATIONS, Attention, Block, Linear, Mlp, Norm, Stack
from gossamer.accelerator.quantize.weights import Precision, quantize_rows
from gossamer.core.errors import ModelError

ROTARY_SHIFT = 14
"""Rotated pairs of 16 bits times cos, sin of 7 bits, back to 8: one octave of room for what turns into range."""
_MOST_BIAS = 2**30
_MOST_NORM_SHIFT = 40


def convert(stack: Stack, scales: Scales, precision: Precision = Precision()) -> integer.Stack:
    """The integer stack. The blocks' weights have `precision`, the others 8 bits.

    Raises:
        ModelError: a number that no multiplier, gain or epsilon of the engine holds; the message names the place.
    """
    entry = scales["entry" if stack.entry is not None else "residual"]
    residual, out = scales["residual"], scales["output"]
    convert_in = None
    if stack.blocks and stack.blocks[0].post:
        convert_in = _dyadic(residual / scales["blocks.0.attention.input"], f"{stack.name}.convert")
    projector, read = [], out
    for number, (layer, activation) in enumerate(stack.projector):
        made = scales[f"projector.{number}.sum"]
        linear = _linear(layer, read, made, Precision(), f"{stack.name}.projector.{number}")
        read = made
        table = None
        if activation is not None:
            read = scales[f"projector.{number}"]
            table = table_of(activation, made, read)
        projector.append((linear, table))
    name = f"{stack.name}."
    return integer.Stack(
        name=stack.name,
        width=stack.width,
        scale=residual,
        blocks=tuple(_block(stack, number, block, scales, precision) for number, block in enumerate(stack.blocks)),
        table=None if stack.table is None else _rows(stack.table, entry),
        patch=None
        if stack.patch is None
        else _linear(stack.patch, scales["patches"], entry, Precision(), name + "patch"),
        input_scale=scales.get("patches", 0.0),
        prefix=None if stack.prefix is None else _rows(stack.prefix, entry),
        positions=None if stack.positions is None else _rows(stack.positions, entry),
        entry=None if stack.entry is None else _norm(stack.entry, entry, residual, name + "entry"),
        convert=convert_in,
        final=None if stack.final is None else _norm(stack.final, residual, out, name + "final"),
        exit=None if stack.final is not None else _dyadic(residual / out, name + "exit"),
        projector=tuple(projector),
        head=None if stack.head is None else _linear(stack.head, read, scales["logits"], Precision(), name + "head"),
        logit_scale=scales.get("logits", 0.0),
        drop=stack.drop,
        notes={"entry_scale": entry, "output_scale": read},
    )


def table_of(activation: str, made: float, out: float) -> NDArray[np.int8]:
    """The function between two scales, for all 256 bytes."""
    steps = torch.arange(256, dtype=torch.float64)
    steps = torch.where(steps < 128, steps, steps - 256)
    values = ACTIVATIONS[activation](steps * made) / out
    return torch.floor(values + 0.5).clamp(-128, 127).to(torch.int8).numpy()


def _block(stack: Stack, number: int, block: Block, scales: Scales, precision: Precision) -> integer.Block:
    at = f"blocks.{number}"
    residual = scales["residual"]
    attention, mlp = scales[f"{at}.attention.input"], scales[f"{at}.mlp.input"]
    following = f"blocks.{number + 1}.attention.input"
    after = (mlp, scales.get(following, scales["output"])) if block.post else (attention, mlp)
    norms = [
        _norm(norm, residual, out, f"{stack.name}.{at}.{name}_norm")
        for name, norm, out in (
            ("attention", block.attention_norm, after[0]),
            ("mlp", block.mlp_norm, after[1]),
        )
    ]
    wide = [
        _norm(norm, residual, residual, f"{stack.name}.{at}") if block.post else None
        for norm in (block.attention_norm, block.mlp_norm)
    ]
    return integer.Block(
        attention_norm=norms[0],
        attention=_attention(stack.name, f"{at}.attention", block.attention, scales, precision),
        mlp_norm=norms[1],
        mlp=_mlp(stack.name, f"{at}.mlp", block.mlp, scales, precision),
        post=block.post,
        attention_norm_wide=wide[0],
        mlp_norm_wide=wide[1],
    )


def _attention(name: str, at: str, attention: Attention, scales: Scales, precision: Precision) -> integer.Attention:
    read, value, attended = (scales[f"{at}.{point}"] for point in ("input", "value", "attended"))
    query, key = scales[f"{at}.query"], scales[f"{at}.key"]
    unrotated = 127 / 2**ROTARY_SHIFT if attention.rotary is not None else 1.0
    score = query * key * attention.scaling * math.log2(math.e) * OCTAVE
    score_multiplier, score_shift = _dyadic(score, f"{name}.{at}.scores")
    table = None
    if attention.rotary is not None:
        table = torch.stack(attention.rotary, -1).flatten(-2).mul(127).round().to(torch.int8).numpy()
    place = f"{name}.{at}"
    return integer.Attention(
        query=_linear(attention.query, read, query * unrotated, precision, f"{place}.query"),
        key=_linear(attention.key, read, key * unrotated, precision, f"{place}.key"),
        value=_linear(attention.value, read, value, precision, f"{place}.value"),
        output=_linear(attention.output, attended, scales["residual"], precision, f"{place}.output"),
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head=attention.head,
        score_multiplier=score_multiplier,
        score_shift=score_shift,
        gain=round(math.log2(value / attended)),
        rotary=table,
        rotary_shift=ROTARY_SHIFT if table is not None else 0,
        causal=attention.causal,
    )


def _mlp(name: str, at: str, mlp: Mlp, scales: Scales, precision: Precision) -> integer.Mlp:
    read, up, activated = (scales[f"{at}.{point}"] for point in ("input", "up", "activated"))
    place, residual = f"{name}.{at}", scales["residual"]
    if mlp.gate is None:
        return integer.Mlp(
            up=_linear(mlp.up, read, up, precision, f"{place}.up"),
            down=_linear(mlp.down, activated, residual, precision, f"{place}.down"),
            table=table_of(mlp.activation, up, activated),
        )
    gate, product = scales[f"{at}.gate"], scales[f"{at}.product"]
    multiplier, shift = _dyadic(up * activated / product, f"{place}.product")
    return integer.Mlp(
        up=_linear(mlp.up, read, up, precision, f"{place}.up"),
        down=_linear(mlp.down, product, residual, precision, f"{place}.down"),
        table=table_of(mlp.activation, gate, activated),
        gate=_linear(mlp.gate, read, gate, precision, f"{place}.gate"),
        multiplier=multiplier,
        shift=shift,
    )


def _linear(layer: Linear, read: float, out: float, precision: Precision, place: str) -> integer.Linear:
    """The layer from scale `read` to scale `out`."""
    codes = quantize_rows(layer.weight, precision)
    weight, steps = codes.codes, codes.steps
    bias = np.zeros(len(weight), np.int32)
    if layer.bias is not None:
        wanted = layer.bias.double() / read
        least = torch.maximum(steps, wanted.abs() / _MOST_BIAS)  # a row of nothing but its bias
        weight = (weight * (steps / least)[:, None]).round().to(torch.int8)
        steps, bias = least, (wanted / least).round().to(torch.int32).numpy()
    pairs = [_dyadic(float(step) * read / out, place) for step in steps]
    return integer.Linear(
        weight=weight.numpy(),
        bias=bias,
        multiplier=np.array([pair[0] for pair in pairs], np.uint16),
        shift=np.array([pair[1] for pair in pairs], np.uint8),
        groups=None if codes.groups is None else codes.groups.numpy(),
        group=codes.group,
    )


def _norm(norm: Norm, read: float, out: float, place: str) -> integer.Norm:
    """The norm of rows of scale `read`, to scale `out`. The common shift is the largest that gains and offsets bear."""
    width = len(norm.weight)
    gain = norm.weight.double() / (out * 2**NORM_FRACTION)
    offset = torch.zeros(width, dtype=torch.float64) if norm.bias is None else norm.bias.double() / out
    room = min(
        math.floor(math.log2(32767 / max(float(gain.abs().max()), 1e-30))),
        math.floor(math.log2((2**31 - 1) / max(float(offset.abs().max()), 1e-30))),
        _MOST_NORM_SHIFT,
    )
    if room < 0:
        raise ModelError(f"{place}: gains of the norm are too large for 16 bits")
    epsilon = round(norm.epsilon * width**2 / read**2)
    if epsilon >= 1 << 48:
        raise ModelError(f"{place}: epsilon {norm.epsilon} is too large for rows of scale {read:.3g}")
    return integer.Norm(
        gain=(gain * 2.0**room).round().to(torch.int16).numpy(),
        offset=(offset * 2.0**room).round().to(torch.int32).numpy(),
        shift=room,
        epsilon=epsilon,
        centred=norm.centred,
    )


def _rows(rows: Tensor, scale: float) -> NDArray[np.int16]:
    return (rows.double() / scale).round().clamp(-32768, 32767).to(torch.int16).numpy()


def _dyadic(scale: float, place: str) -> tuple[int, int]:
    try:
        return dyadic(scale)
    except ValueError as error:
        raise ModelError(f"{place}: {error}") from error
