"""What a model keeps of the sequences that it has read: some of them taken, old columns dropped, two batches joined.

A past is a cache of transformers, whose layers hold keys and values of a growing number of columns, of the latest
columns (a sliding window), or a state of fixed size (Mamba); or a list of tensors with one row for each sequence
(RWKV). Batches are padded on the left, so that the last column is the latest token of every sequence.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.errors import ModelError


def take_rows(past: Any, rows: Sequence[int]) -> Any:
    """The past of the sequences at `rows`; a cache is changed in place."""
    if isinstance(past, (list, tuple)):
        return [part[list(rows)] for part in past]
    past.reorder_cache(torch.tensor(rows))
    return past


def shallow(past: Any) -> Any:
    """A past of its own that holds the same tensors: what is put into its places does not change the first one.

    Raises `ModelError` for a past of another make.
    """
    if isinstance(past, (list, tuple)):
        return list(past)
    if not hasattr(past, "layers"):
        raise ModelError(f"{type(past).__name__} does not come apart into layers: no copy of one sequence can be made")
    twin = copy.copy(past)
    twin.layers = [copy.copy(layer) for layer in past.layers]
    for layer in twin.layers:
        vars(layer).update({name: dict(held) for name, held in vars(layer).items() if isinstance(held, dict)})
    return twin


def drop_oldest(past: Any, columns: int) -> None:
    """Forgets the first columns of a cache, where no sequence that is left has a token."""
    for layer in getattr(past, "self_attention_cache", past).layers:
        if getattr(layer, "keys", None) is not None:
            _set_width(layer, layer.get_seq_length() - columns)


def join_rows(past: Any, other: Any) -> Any:
    """The past of the sequences of `past` and then those of `other`, the shorter padded on the left.

    A cache is changed in place. Raises `ModelError` for layers that keep something else than keys, values or a state.
    """
    if isinstance(past, (list, tuple)):
        return [torch.cat(pair) for pair in zip(past, other, strict=True)]
    if hasattr(past, "cross_attention_cache"):
        join_rows(past.self_attention_cache, other.self_attention_cache)
        join_rows(past.cross_attention_cache, other.cross_attention_cache)
        return past
    pairs = list(zip(past.layers, other.layers, strict=True))
    for mine, _ in pairs:  # all are checked before the first is changed
        _check_joinable(mine)
    for mine, theirs in pairs:
        _join_layers(mine, theirs)
    return past


def _check_joinable(layer: Any) -> None:
    from transformers import cache_utils as caches

    growing = (caches.DynamicLayer, caches.DynamicSlidingWindowLayer)
    fixed = (caches.LinearAttentionLayer, caches.DummyLayer)
    both = (caches.LinearAttentionAndFullAttentionLayer, caches.LinearAttentionAndSlidingWindowAttentionLayer)
    if type(layer) not in (*growing, *fixed, *both):
        raise ModelError(
            f"sequences cannot join a batch whose cache keeps {type(layer).__name__}: keys and values, whole or of a "
            "sliding window, and states of fixed size can be joined"
        )


def _join_layers(mine: Any, theirs: Any) -> None:
    for name in ("conv_states", "recurrent_states"):
        states, more = getattr(mine, name, {}), getattr(theirs, name, {})
        for key in states:
            if states[key] is not None:
                states[key] = torch.cat([states[key], more[key]])
    if getattr(mine, "keys", None) is not None:
        theirs = copy.copy(theirs)
        width = max(mine.get_seq_length(), theirs.get_seq_length())
        for layer in (mine, theirs):
            _set_width(layer, width)
        mine.keys, mine.values = torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values])


def _set_width(layer: Any, width: int) -> None:
    """Lets the layer have read `width` columns: the oldest are dropped, or empty ones put before them."""
    if layer.is_sliding:
        layer.cumulative_length = width
        width = min(width, layer.sliding_window - 1)
    layer.keys, layer.values = _ending(layer.keys, width), _ending(layer.values, width)


def _ending(columns: Tensor, width: int) -> Tensor:
    """The last `width` of `columns` (rows, heads, columns, size), zeros before them where there are fewer."""
    return nn.functional.pad(columns, (0, 0, width - columns.shape[-2], 0))
