"""Which on-disk form each layer of one model can take, and what that costs.

`packed.container` knows what a kind of layer allows; this adds what the model's own code allows. While transformers
loads a checkpoint, some families' `_init_weights` reach for the `weight` of their linear layers (SigLIP, OWLv2, RWKV,
Mamba's time step). A packed layer has none at that moment and the load fails, so there the nearest form that loads is
used: codes of 8 bits each. The model's code is asked on a copy without values, so nothing here is a list of names.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from gossamer.models.packed import PACKED_FLOATS, Container, Scheme, container, stored_bytes
from gossamer.models.stacks import merged

if TYPE_CHECKING:
    from torch import nn

    from gossamer.models.hierarchy import Layer


@dataclass(frozen=True)
class Containers:
    """The forms that one model's layers load in.

    `unpackable` are linear modules that take 8-bit codes at best, `unserved` modules that stay dense at 16 bits
    (convolutions, input-major linear layers, modules with several inputs); `beside` are bytes of constants that a
    compressed module stores beside its weight (Gemma's embedding scale). `stacks` are the stacked parameters that
    loading merges, with the number of stored matrices that make up one of theirs; others stay dense.
    """

    unpackable: frozenset[str]
    unserved: frozenset[str]
    beside: dict[str, int]
    stacks: dict[str, int]

    @classmethod
    def of(cls, model: "nn.Module") -> "Containers":
        """Asks the model's modules and its initialisation code. The model itself is not touched."""
        modules = dict(model.named_modules(remove_duplicate=False))
        served = {name: module for name, module in modules.items() if _is_served(module)}
        beside = {name: sum(tensor.nbytes for tensor in constants(module).values()) for name, module in served.items()}
        unserved = frozenset(modules.keys() - served.keys())
        beside = {name: size for name, size in beside.items() if size}
        return cls(weights_asked_for(model), unserved, beside, merged(model))

    def form(self, layer: "Layer", scheme: Scheme | None) -> Container:
        """The on-disk form of `layer` on the grid `scheme`."""
        if scheme is not None and layer.index is not None:
            form = container("linear", scheme)
            held = layer.tensor in self.stacks and not layer.transposed
            return form if held and form in ("pack-quantized", "float-quantized") else "dense"
        if scheme is None or layer.module in self.unserved or layer.kind not in ("linear", "embedding"):
            return "dense"
        form = container(layer.kind, scheme)
        if layer.module in self.unpackable and form in PACKED_FLOATS.values():
            return "dense"
        return "int-quantized" if form == "pack-quantized" and layer.module in self.unpackable else form

    def bytes(self, layer: "Layer", scheme: Scheme | None) -> int:
        """Bytes of the layer in the checkpoint: codes, scales, zero points, shape and constants stored beside.

        Of an expert on a grid that all experts share (see `shared_schemes`).
        """
        form = self.form(layer, scheme)
        if form == "dense":
            return stored_bytes(layer.kind, layer.shape, None)
        if layer.index is not None:
            shapes = 16 * (self.stacks[layer.tensor] - 1) if form == "pack-quantized" else 0
            return stored_bytes("linear", layer.shape, scheme) + shapes
        kind = "embedding" if form == "int-quantized" else layer.kind
        return stored_bytes(kind, layer.shape, scheme) + self.beside.get(layer.module, 0)


def _is_served(module: "nn.Module") -> bool:
    """A linear or embedding module called with one input: compressed-tensors' wrapper passes on no more."""
    from torch import nn

    one_input = len(inspect.signature(type(module).forward).parameters) == 2
    return isinstance(module, (nn.Linear, nn.Embedding)) and one_input


def constants(module: "nn.Module") -> dict[str, Any]:
    """Buffers that a module computes with but does not save; compressing turns them into tensors of the checkpoint."""
    saved = set(module.state_dict())
    return {name: tensor for name, tensor in module.named_buffers(recurse=False) if name not in saved}


def weights_asked_for(model: "nn.Module") -> frozenset[str]:
    """The linear modules without whose `weight` the model's initialisation code fails."""
    import torch
    from torch import nn

    with torch.device("meta"):
        bare: Any = type(model)(copy.deepcopy(model.config))
    needed: set[str] = set()
    asked: list[str] = []
    weights: dict[str, nn.Parameter] = {}
    for name, module in list(bare.named_modules()):
        module._is_hf_initialized = False
        if isinstance(module, nn.Linear):
            weights[name] = cast(nn.Parameter, module._parameters.pop("weight"))
            module.__class__ = _watching(type(module), name, asked)
    while True:
        asked.clear()
        try:
            bare.initialize_weights()
            return frozenset(needed)
        except AttributeError:
            if not asked or asked[-1] in needed:
                raise
            needed.add(asked[-1])
            bare.get_submodule(asked[-1])._parameters["weight"] = weights[asked[-1]]


def _watching(kind: type, name: str, asked: list[str]) -> type:
    """A subclass of `kind` whose one instance notes its name in `asked` when its missing weight is asked for."""

    def getattr_noting(self: Any, attribute: str) -> Any:
        if attribute == "weight":
            asked.append(name)
        return kind.__getattr__(self, attribute)  # type: ignore[attr-defined]

    return type(kind.__name__, (kind,), {"__getattr__": getattr_noting})
