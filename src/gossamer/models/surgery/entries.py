"""A config as entries that can be changed, and the model that it then describes."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gossamer.models.loading import quiet

if TYPE_CHECKING:
    from torch import nn

Way = tuple[str, ...]
"""Where an entry is: the sections that lead to it, and its own name."""

Edits = Mapping[Way, Any]
Shapes = dict[str, tuple[int, ...]]


def entries(config: Any) -> dict[Way, Any]:
    """All entries of a config and of the configs of parts inside it, but for those that every config has."""
    from transformers import PretrainedConfig

    common = PretrainedConfig().to_dict()
    return {way: value for way, value in _entries(config.to_dict(), ()) if way[-1] not in common}


def _entries(section: Mapping[str, Any], way: Way) -> Iterator[tuple[Way, Any]]:
    for name, value in section.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from _entries(value, (*way, name))
        else:
            yield (*way, name), value


def is_count(value: Any) -> bool:
    """Whether an entry's value can count something."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def built(model: "nn.Module", edits: Edits, kind: Any = None) -> Any | None:
    """The model that the config with `edits` describes, on the meta device; None if it has none.

    It is of the same class, or of `kind`.
    """
    import torch

    config: Any = model.config
    changed = config.to_dict()
    for way, value in edits.items():
        section = changed
        for name in way[:-1]:
            section = section[name]
        section[way[-1]] = value
    kind = kind or type(model)
    try:
        with torch.device("meta"), quiet():
            fresh = kind._from_config(
                type(config).from_dict(changed),
                dtype=getattr(model, "dtype", torch.float32),
                attn_implementation=config._attn_implementation,
            )
    except Exception:  # families raise whatever they like at a config that they cannot build
        return None
    return fresh.train(model.training)


def shapes_of(model: "nn.Module") -> Shapes:
    """Name → shape of every tensor of the state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
