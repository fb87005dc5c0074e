"""Which parameters share one tensor, and which of those ties a compressed checkpoint has to break.

A checkpoint stores a tied pair once and the loader ties it again. Once either side is quantised the two differ in
form, so both are stored and `tie_word_embeddings` is switched off in the configuration that asked for the tie.
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gossamer.models.hierarchy import Hierarchy, Layer

if TYPE_CHECKING:
    from torch import nn

ConfigPath = tuple[str, ...]


@dataclass(frozen=True)
class Ties:
    """`kept` names parameters that are another's and are not stored, `broken` those stored on their own instead.

    `configs`: for each configuration that must stop tying, the attribute names that lead to it from the model's own.
    """

    kept: frozenset[str]
    broken: frozenset[str]
    configs: tuple[ConfigPath, ...]

    @classmethod
    def of(cls, model: "nn.Module", quantised: Set[str]) -> "Ties":
        """The ties of `model` when the modules named in `quantised` are stored in a compressed form."""
        broken: set[str] = set()
        configs: set[ConfigPath] = set()
        waiting = _maps(model)
        while waiting:
            breaks = [entry for entry in waiting if _breaks(model, entry[1], quantised) or broken & set(entry[1])]
            if not breaks:
                break
            for path, pairs in breaks:
                configs.add(path)
                broken |= set(pairs)
            waiting = [entry for entry in waiting if entry not in breaks]
        kept = {target for _, pairs in waiting for target in pairs}
        return cls(frozenset(kept), frozenset(broken), tuple(sorted(configs)))


def retied(model: "nn.Module", hierarchy: Hierarchy) -> Hierarchy:
    """The hierarchy with layers tied only to those whose tensor they still share in `model`."""
    owners = {layer.path: layer for layer in hierarchy.layers()}

    def now(layer: Layer) -> Layer:
        owner = owners.get(layer.tied_to or "")
        shared = owner is not None and model.get_parameter(owner.tensor) is model.get_parameter(layer.tensor)
        return layer if shared or layer.tied_to is None else replace(layer, tied_to=None)

    return hierarchy.mapped(now)


def _maps(model: "nn.Module") -> list[tuple[ConfigPath, dict[str, str]]]:
    """Each submodel's ties, parameter → parameter it shares, with the way to the configuration that asks for them."""
    found = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        expand = getattr(module, "get_expanded_tied_weights_keys", None)
        pairs = expand(all_submodels=False) if expand is not None else {}
        if pairs:
            start = f"{prefix}." if prefix else ""
            path = _way(model.config, module.config)
            found.append((path or (), {start + target: start + source for target, source in pairs.items()}))
    return found


def _breaks(model: "nn.Module", pairs: dict[str, str], quantised: Set[str]) -> bool:
    return any(
        target.rpartition(".")[0] in quantised
        or source.rpartition(".")[0] in quantised
        or _tensor(model, target) is not _tensor(model, source)
        for target, source in pairs.items()
    )


def _tensor(model: "nn.Module", name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute, None)


def _way(root: Any, wanted: Any) -> ConfigPath | None:
    if root is wanted:
        return ()
    for name in getattr(root, "sub_configs", None) or {}:
        child = getattr(root, name, None)
        way = _way(child, wanted) if child is not None else None
        if way is not None:
            return (name, *way)
    return None
