"""What queries look at, while the model's own attention stays as fast as it is.

transformers lets a model attend by a function of another name. Ours hands everything to the function that the model
had, and lets the layer of the cache see queries and keys afterwards. It is in force for one forward pass of one model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gossamer.core.errors import ModelError

_PAST: ContextVar[Any] = ContextVar("past")
_SERVED = ("sdpa", "eager")
_WEIGHTS_AT_ONCE = 1 << 22


@contextmanager
def seen_by(past: Any, model: Any) -> Iterator[None]:
    """Inside, the layers of `past` that have a method `attended` are called after their attention in `model`.

    Raises `ModelError` for a model that does not attend by transformers' interface.
    """
    text = model.config.get_text_config(decoder=True)
    before = text._attn_implementation
    if before not in _SERVED:
        raise ModelError(f"attention {before!r} cannot be observed: load the model with {' or '.join(_SERVED)}")
    token = _PAST.set(past)
    text._attn_implementation = _name_of(before)
    try:
        yield
    finally:
        text._attn_implementation = before
        _PAST.reset(token)


def _name_of(inner: str) -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = f"gossamer_{inner}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, partial(_attend, inner))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[inner])
    return name


def _attend(
    inner: str, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    home: Any = __import__(type(module).__module__, fromlist=["eager_attention_forward"])
    attend = home.eager_attention_forward if inner == "eager" else ALL_ATTENTION_FUNCTIONS[inner]
    layer = _PAST.get().layers[module.layer_idx]
    if not hasattr(layer, "attended"):
        return attend(module, query, key, value, attention_mask, **settings)
    mask = fitting(attention_mask, key.shape[2])
    output = attend(module, query, key, value, mask, **settings)
    layer.attended(query, key, mask, settings.get("scaling"), settings.get("softcap"))
    return output


def fitting(mask: Tensor | None, rows: int) -> Tensor | None:
    """The mask (batch, 1, queries, columns) for a layer with so many `rows`, all of which were read before but the
    latest, those of the queries: models make one mask for all layers, which may have kept more rows or fewer."""
    if mask is None or mask.shape[-1] == rows:
        return mask
    new = mask[..., -mask.shape[-2] :]
    shown = torch.ones_like(new[..., :1]) if mask.dtype == torch.bool else torch.zeros_like(new[..., :1])
    return torch.cat([shown.expand(*shown.shape[:-1], rows - new.shape[-1]), new], -1)


def attention(
    query: Tensor, keys: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The probabilities of queries (1, heads, queries, channels) over keys (1, key–value heads, rows, channels).

    Yields some queries at a time: weights (key–value heads, queries of one group, queries, rows), float32, and what
    they may see, bool (queries, rows). `mask` (1, 1, queries, rows), bool or added to the scores; None: the queries are
    those of the latest rows, each sees the rows up to its own.
    """
    heads, length, rows = keys.shape[1], query.shape[2], keys.shape[2]
    grouped = query.reshape(heads, -1, length, query.shape[-1]).float()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    order = torch.arange(rows, device=keys.device)
    step = max(1, _WEIGHTS_AT_ONCE // (query.shape[1] * rows))
    for start in range(0, length, step):
        some = slice(start, start + step)
        if mask is None:
            visible = order <= order[rows - length :][some, None]
        else:
            visible = mask[0, 0, some] if mask.dtype == torch.bool else mask[0, 0, some] >= 0
        scores = grouped[:, :, some] @ keys[0, :, None].float().transpose(-1, -2) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        yield scores.masked_fill(~visible, -torch.inf).softmax(-1), visible
