"""Reading the hierarchy out of a model: by its family's row, or, where there is none, by inspection."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError
from gossamer.models.families import FUSED, Part, family_of, unit_of
from gossamer.models.hierarchy import Block, Hierarchy, Layer, LayerKind, Modality

if TYPE_CHECKING:
    from torch import Tensor, nn


def hierarchy_of(model: "nn.Module", config: Any) -> Hierarchy:
    """The hierarchy of a model of any kind, on any device (meta included).

    Every Linear, Embedding, convolution and matrix of an expert becomes a layer; norms, biases and vectors are
    counted as `other_parameters`, and so are those of state spaces and time mixing with the short filters before them
    (convolutions with channel groups): nothing quantises these. The sum is the model's parameter count, shared tensors
    once. Where no family row covers the model type, or the row does not fit, the structure is guessed and `guessed` is
    set.
    """
    name = getattr(config, "model_type", "") or type(model).__name__.lower()
    family = family_of(name)
    base = _base_path(model)
    if family is not None:
        places = _places(model, family.parts, base)
        if any(place.blocks for place in places):
            return _assemble(model, name, False, places, family.fused)
    return _assemble(model, name, True, _guess(model), FUSED)


def read_matrix(model: "nn.Module", layer: Layer) -> "Tensor":
    """A layer's weight as (rows, columns), detached; a view where the storage allows."""
    weight = layer.place(model.get_parameter(layer.tensor).detach())
    if layer.transposed:
        weight = weight.T
    return weight.reshape(layer.rows, layer.columns)


def write_matrix(model: "nn.Module", layer: Layer, matrix: "Tensor") -> None:
    """Replaces a layer's weight by `matrix` (rows, columns), in place. Raises `ModelError` if the shape differs."""
    import torch

    if tuple(matrix.shape) != (layer.rows, layer.columns):
        raise ModelError(f"{layer.path} takes a matrix of {(layer.rows, layer.columns)}, not {tuple(matrix.shape)}")
    with torch.no_grad():
        layer.place(model.get_parameter(layer.tensor)).copy_(layer.stored(matrix))


def modality_of(model: "nn.Module", hierarchy: Hierarchy) -> dict[str, str]:
    """Parameter name → the modality that counts it, shared tensors under their first name only."""
    if hierarchy.guessed:
        places = _guess(model)
    else:
        family = family_of(hierarchy.family)
        places = _places(model, family.parts if family else (), _base_path(model))
    held = _held(places)
    return {name: _locate(name, held)[0] for name, _ in model.named_parameters()}


# ---------------------------------------------------------------------------------------------------- places


@dataclass
class _Place:
    """A part found in a model: `prefixes` are the module or tensor paths it holds, with the path that layer names are
    relative to; `blocks` is the path of its block list, empty without one."""

    modality: str
    root: str
    prefixes: list[tuple[str, str]]
    blocks: str = ""


def _base_path(model: "nn.Module") -> str:
    """The attribute that holds the base model inside a task model, empty where the model is bare."""
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    return prefix if prefix and hasattr(model, prefix) else ""


def _places(model: "nn.Module", parts: Iterable[Part], base: str) -> list[_Place]:
    modules = dict(model.named_modules())
    tensors = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    def resolve(path: str) -> str | None:
        full = ".".join(piece for piece in path.replace("@", base, 1).split(".") if piece)
        return full if full in modules or full in tensors else None

    places = []
    for part in parts:
        prefixes = []
        root = resolve(part.root) if part.root else None
        if root is not None:
            prefixes.append((root, root if root and not _holds_weight(modules[root]) else _parent(root)))
        for path in part.also:
            full = resolve(path)
            if full is not None:
                prefixes.append((full, _parent(full)))
        if not prefixes:
            continue
        blocks = ""
        if root is not None:
            candidates = (f"{root}.{path}" if root else path for path in part.blocks)
            blocks = next((path for path in candidates if path in modules and len(list(modules[path].children()))), "")
        places.append(_Place(part.modality, root or "", prefixes, blocks))
    return places


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _holds_weight(module: "nn.Module") -> bool:
    return next(module.parameters(recurse=False), None) is not None and not list(module.children())


# -------------------------------------------------------------------------------------------------- assembly


@dataclass
class _Bin:
    layers: list[Layer] = field(default_factory=list)
    other: int = 0


def _assemble(model: "nn.Module", name: str, guessed: bool, places: list[_Place], fused: tuple[str, ...]) -> Hierarchy:
    """Sorts every tensor of the model into a block or a part."""
    order = list(dict.fromkeys([place.modality for place in places if place.modality != "head"] + ["head"]))
    held = _held(places)
    bins: dict[tuple[str, str], _Bin] = {}
    paths: dict[tuple[int, int | None], str] = {}
    counted: set[int] = set()
    for found in _weights(model):
        modality, block, relative = _locate(found.layer.tensor, held)
        holder = bins.setdefault((modality, block), _Bin())
        inner = found.layer.path[len(relative) + 1 if relative else 0 :]
        stem = f"{modality}.blocks.{block.rpartition('.')[2]}" if block else modality
        path = f"{stem}.{inner}"
        weight = id(found.tensor), found.layer.index
        layer = replace(found.layer, path=path, unit=unit_of(path, fused), tied_to=paths.get(weight))
        paths.setdefault(weight, path)
        counted.add(id(found.tensor))
        holder.layers.append(layer)
    for tensor, parameter in model.named_parameters():
        if id(parameter) not in counted:
            modality, block, _ = _locate(tensor, held)
            bins.setdefault((modality, block), _Bin()).other += parameter.numel()

    modalities = []
    for modality in order:
        own = [place for place in places if place.modality == modality]
        blocks = []
        for place in own:
            for index, _ in _children(model, place.blocks):
                holder = bins.get((modality, f"{place.blocks}.{index}"), _Bin())
                module = f"{place.blocks}.{index}"
                blocks.append(Block(f"{modality}.blocks.{index}", module, tuple(holder.layers), holder.other))
        rest = bins.get((modality, ""), _Bin())
        if blocks or rest.layers or rest.other:
            root = next((place.root for place in own if place.root), "")
            modalities.append(Modality(modality, root, tuple(blocks), tuple(rest.layers), rest.other))
    return Hierarchy(name, guessed, tuple(modalities))


_Held = list[tuple[str, str, _Place]]


def _held(places: Iterable[_Place]) -> _Held:
    """(path, path that names are relative to, place) of everything that places hold, the longest paths first."""
    held = [(path, relative, place) for place in places for path, relative in place.prefixes]
    return sorted(held, key=lambda item: -len(item[0]))


def _locate(tensor: str, held: _Held) -> tuple[str, str, str]:
    """(modality, the block's module or "", the module that the layer's name is relative to) of a tensor."""
    for path, relative, place in held:
        if not path or tensor == path or tensor.startswith(path + "."):
            if place.blocks and tensor.startswith(place.blocks + "."):
                block = f"{place.blocks}.{tensor[len(place.blocks) + 1 :].split('.', 1)[0]}"
                return place.modality, block, block
            return place.modality, "", relative
    return "head", "", ""


def _children(model: "nn.Module", path: str) -> Iterator[tuple[str, "nn.Module"]]:
    return iter(model.get_submodule(path).named_children()) if path else iter(())


@dataclass(frozen=True)
class _Found:
    layer: Layer
    tensor: "Tensor"


def _weights(model: "nn.Module") -> Iterator[_Found]:
    """Every weight matrix in module order, shared ones at each place; paths are still the module's own."""
    for module_path, module in model.named_modules(remove_duplicate=False):
        if _is_experts(module):
            stacks = {name: stack for name, stack in module.named_parameters(recurse=False) if stack.dim() == 3}
            transposed = bool(getattr(module, "is_transposed", False))
            for index in range(max(map(len, stacks.values()))):
                for name, stack in stacks.items():
                    if index < len(stack):
                        path, shape = f"{module_path}.{index}.{name}", tuple(stack.shape[1:])
                        layer = Layer(path, module_path, "expert", shape, path, None, name, transposed, index)
                        yield _Found(layer, stack)
            continue
        kind = _kind(module)
        weight: Any = getattr(module, "weight", None)
        if kind is not None and weight is not None and weight.dim() >= 2:
            transposed = kind == "linear" and type(module).__name__ == "Conv1D"
            shape = tuple(weight.shape)
            yield _Found(Layer(module_path, module_path, kind, shape, module_path, transposed=transposed), weight)


def _kind(module: "nn.Module") -> LayerKind | None:
    from torch import nn

    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1:
        return "conv"
    return None


def _is_experts(module: "nn.Module") -> bool:
    """A module that holds the matrices of all its experts as stacked tensors, as transformers 5 does."""
    return type(module).__name__.endswith("Experts") and any(
        parameter.dim() == 3 for parameter in module.parameters(recurse=False)
    )


# -------------------------------------------------------------------------------------------------- guessing

_WORDS = (
    ("vision", r"vision|visual|image|img|vit|pixel|patch"),
    ("audio", r"audio|speech|wav|acoustic"),
    ("language", r"language|decoder|llm|lm"),
    ("text", r"text"),
)


def _guess(model: "nn.Module") -> list[_Place]:
    """Lists of two or more modules of one class that hold weight matrices are the blocks; the outermost lists count."""
    lists = list(_block_lists(model))
    names: set[str] = set()
    places: list[_Place] = []
    for path in lists:
        root = _parent(path)
        name = next((word for word, pattern in _WORDS if re.search(pattern, path.lower())), "")
        if not name:
            name = "language" if len(lists) == 1 else (root.rpartition(".")[2] or "body")
        while name in names or name in ("head", "embeddings"):
            name += "_more"
        names.add(name)
        places.append(_Place(name, root, [(root, root), (path, _parent(path))], path))
    towers = tuple(f"{place.root}." for place in places if place.modality in ("vision", "audio") and place.root)
    tables = [
        (found.layer.module, _parent(found.layer.module))
        for found in _weights(model)
        if found.layer.kind == "embedding"
        and not f"{found.layer.module}.".startswith((*towers, *(f"{path}." for path in lists)))
    ]
    return [_Place("embeddings", "", tables), *places] if tables else places


def _block_lists(model: "nn.Module") -> Iterator[str]:
    from torch import nn

    inside = ""
    for path, module in model.named_modules():
        if inside and path.startswith(inside):
            continue
        members = list(module.children())
        if (
            isinstance(module, (nn.ModuleList, nn.Sequential))
            and len(members) >= 2
            and len({type(member) for member in members}) == 1
            and all(list(member.children()) and next(_weights(member), None) is not None for member in members)
        ):
            inside = path + "."
            yield path
