"""What a model is made of: parameters, bytes and multiply-accumulates, from the whole down to each layer."""

from typing import TYPE_CHECKING, Any

from gossamer.models.hierarchy import Hierarchy, Layer, Modality

if TYPE_CHECKING:
    from torch import nn

    from gossamer.models.open import Opened

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


def inspect(ref: str) -> dict[str, Any]:
    """Inspects a model without loading its weights; a `config.json` alone is enough.

    Keys: `model`, `family`, `architecture`, `guessed`, `warnings`, `parameters`, `weight_bytes`, `stored_as`,
    `modalities.{name}.{parameters,weight_bytes,blocks}`, `blocks` and `layers` (lists), `macs_per_token`,
    `macs_per_image`, `macs_per_audio_window` (None where the model has no such part) and `macs_basis`. Bytes are those
    on disk; from a config alone, those at the precision it names, or else at 16 bits. Raises `ModelError`.
    """
    from gossamer.models.open import open_model

    return inspect_opened(open_model(ref, weights=False))


def inspect_opened(opened: "Opened") -> dict[str, Any]:
    """As `inspect`, for a model that is already open."""
    from gossamer.models.stacks import merged
    from gossamer.models.work import work_of

    hierarchy = opened.hierarchy
    sizes = _Sizes.of(opened)
    work = work_of(hierarchy, opened.config)
    warnings = []
    if hierarchy.guessed:
        warnings.append(f"no row describes the family {hierarchy.family!r}: the hierarchy was found by inspection")
    if sizes.unplaced:
        warnings.append(f"{sizes.unplaced} stored bytes belong to no part of the model")
    if {layer.tensor for layer in hierarchy.layers() if layer.index is not None} - merged(opened.model).keys():
        warnings.append("this family's checkpoints hold experts in one piece, which no loader unpacks: 16 bits it is")
    return {
        "model": opened.source,
        "family": hierarchy.family,
        "architecture": type(opened.model).__name__,
        "guessed": hierarchy.guessed,
        "warnings": warnings,
        "parameters": hierarchy.parameters,
        "weight_bytes": sizes.total,
        "stored_as": sizes.basis,
        "modalities": {part.name: _modality(part, sizes) for part in hierarchy.modalities},
        "macs_per_token": work.per_token,
        "macs_per_image": work.per_image,
        "macs_per_audio_window": work.per_audio_window,
        "macs_basis": work.basis,
        "blocks": [
            {"path": block.path, "parameters": block.parameters, "weight_bytes": sizes.within(block.module)}
            for block in hierarchy.blocks()
        ],
        "layers": [_layer(layer, sizes) for layer in hierarchy.layers()],
    }  # fmt: skip


def _modality(part: Modality, sizes: "_Sizes") -> dict[str, Any]:
    return {
        "parameters": part.parameters,
        "weight_bytes": sizes.modalities.get(part.name, 0),
        "blocks": len(part.blocks),
    }


def _layer(layer: Layer, sizes: "_Sizes") -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": layer.path,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "unit": layer.unit,
        "parameters": layer.parameters,
        "weight_bytes": sizes.of_layer(layer),
    }
    return entry if layer.tied_to is None else {**entry, "tied_to": layer.tied_to}


class _Sizes:
    """Bytes of every parameter and of what holds them."""

    def __init__(
        self,
        parameters: dict[str, int],
        elements: dict[str, int],
        modalities: dict[str, int],
        unplaced: int,
        basis: str,
    ) -> None:
        self.parameters = parameters
        self._elements = elements
        self.modalities = modalities
        self.unplaced = unplaced
        self.total = sum(parameters.values()) + unplaced
        self.basis = basis

    @classmethod
    def of(cls, opened: "Opened") -> "_Sizes":
        from gossamer.models.placement import bytes_by_parameter

        parameters, unplaced = bytes_by_parameter(opened)
        basis = "stored"
        elements = {name: tensor.numel() for name, tensor in opened.model.named_parameters()}
        if not parameters:
            basis = str(getattr(opened.config, "dtype", None) or "float16").removeprefix("torch.")
            width = _BYTES.get(basis, 2)
            parameters = {name: width * count for name, count in elements.items()}
        return cls(parameters, elements, _by_modality(opened.model, opened.hierarchy, parameters), unplaced, basis)

    def of_layer(self, layer: Layer) -> int:
        """Bytes of a layer's weight; of a stacked parameter its share."""
        size = self.parameters.get(layer.tensor, 0)
        if layer.tied_to is not None:
            return 0
        return size if layer.index is None else size * layer.parameters // self._elements[layer.tensor]

    def within(self, module: str) -> int:
        """Bytes of all parameters inside a module."""
        return sum(size for name, size in self.parameters.items() if name.startswith(module + "."))


def _by_modality(model: "nn.Module", hierarchy: Hierarchy, parameters: dict[str, int]) -> dict[str, int]:
    from gossamer.models.structure import modality_of

    totals: dict[str, int] = {}
    where = modality_of(model, hierarchy)
    for name, size in parameters.items():
        modality = where.get(name, "head")
        totals[modality] = totals.get(modality, 0) + size
    return totals
