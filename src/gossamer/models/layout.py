"""Deciding how every tensor of a compressed checkpoint is stored, and saying where that is not as the grids ask."""

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError, PlanError
from gossamer.core.paths import listed
from gossamer.models.containers import Containers
from gossamer.models.inputs import InputGrid, input_grid
from gossamer.models.packed import PACKED_FLOATS, Container, QuantizedTensor
from gossamer.models.stacks import on_grid, shared_schemes
from gossamer.models.ties import Ties
from gossamer.models.widths import CODE, FIELD

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gossamer.models.hierarchy import Layer
    from gossamer.models.open import Opened


@dataclass(frozen=True)
class Form:
    """How one layer is stored: its container, why if that is not what its grid asks for, how its inputs are rounded."""

    layer: "Layer"
    tensor: QuantizedTensor
    container: Container
    why: str = ""
    inputs: InputGrid | None = None

    @property
    def compressed(self) -> bool:
        return self.container != "dense"


@dataclass(frozen=True)
class Layout:
    """Every decision about a checkpoint: the quantised layers' forms, broken ties, the 16-bit type of the rest."""

    forms: tuple[Form, ...]
    ties: Ties
    dtype: "torch.dtype"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def compressed(self) -> list[Form]:
        return [form for form in self.forms if form.compressed]

    def without(self, modules: Set[str], why: str) -> "Layout":
        """The same with the layers of these modules stored dense."""
        forms = (
            replace(form, container="dense", why=why) if form.layer.module in modules else form for form in self.forms
        )
        return replace(self, forms=tuple(forms))


_EXPERTS_DENSE = (
    "transformers unpacks experts only where all of a stack, and all stacks alike, have codes of whole numbers without "
    "zero points or E4M3 codes, in families whose checkpoints name each expert"
)


def layout_of(opened: "Opened", tensors: Mapping[str, QuantizedTensor]) -> Layout:
    """Decides how everything is stored. Raises `PlanError` for a path or shape that is not the model's."""
    import torch

    known = {layer.path: layer for layer in opened.hierarchy.layers()}
    containers = Containers.of(opened.model)
    grids = shared_schemes(known.values(), {path: tensor.scheme for path, tensor in tensors.items() if path in known})
    forms = []
    for path in sorted(tensors):
        layer, tensor = known.get(path), tensors[path]
        if layer is None:
            raise PlanError(f"the model has no layer {path}: gossamer inspect lists its layers")
        if tuple(tensor.codes.shape) != (layer.rows, layer.columns):
            rows, columns = tensor.codes.shape
            raise PlanError(f"layer {path} is {layer.rows} x {layer.columns}, its codes are {rows} x {columns}")
        form = containers.form(layer, grids.get(path))
        why = "the format serves linear and embedding modules with one input only" if form == "dense" else ""
        if layer.index is not None:
            why = _EXPERTS_DENSE if form == "dense" else ""
            if form != "dense" and tensor.scheme != grids[path]:
                why = f"{tensor.scheme.bits} bits, group {tensor.scheme.group or 'whole rows'}"
                tensor = on_grid(tensor, grids[path])
        if form == "int-quantized" and layer.module in containers.unpackable:
            why = "transformers' code for this family does not load packed ones"
        inputs = input_grid(opened.model.get_submodule(layer.module))
        if inputs is not None and form == "pack-quantized" and tensor.scheme.bits == 8:
            form = "int-quantized"  # where kernels for both sides at 8 bits look for codes
        forms.append(Form(layer, tensor, form, why, inputs))
    _check_inputs(opened.model, {form.layer.module for form in forms if form.compressed})
    ties = Ties.of(opened.model, {form.layer.module for form in forms})
    gone = {form.layer.tensor for form in forms if form.layer.index is None or form.compressed}
    dtype = _sixteen_bits(opened, gone)
    if any(form.container in PACKED_FLOATS.values() for form in forms):
        dtype = torch.bfloat16
    return Layout(tuple(forms), ties, dtype)


def _check_inputs(model: "nn.Module", compressed: Set[str]) -> None:
    """Raises `ModelError` if a layer rounds its inputs that is not stored in a form that says so."""
    for name, module in model.named_modules():
        if name not in compressed and input_grid(module) is not None:
            raise ModelError(f"the inputs of {name} are rounded, which is stored beside a quantised weight only")


def _sixteen_bits(opened: "Opened", quantised: set[str]) -> "torch.dtype":
    """float16, or bfloat16 where a weight that stays dense is too large for it. Refuses NaN and infinity."""
    import torch

    largest = 0.0
    for name, tensor in opened.model.state_dict().items():
        if not tensor.is_floating_point() or tensor.numel() == 0 or name in quantised:
            continue
        low, high = torch.aminmax(tensor)
        peak = float(torch.maximum(high, -low))
        opened.memory.rest()
        if not math.isfinite(peak):
            raise ModelError(f"{opened.source}: tensor {name} holds NaN or infinity; export needs finite weights")
        largest = max(largest, peak)
    return torch.float16 if largest <= torch.finfo(torch.float16).max else torch.bfloat16


def dense_weight(form: Form) -> "Tensor":
    """The dequantised weight in the layer's stored shape, float32."""
    layer = form.layer
    return layer.stored(form.tensor.dequantize().reshape(layer.rows, layer.columns))


def loaded_weight(form: Form, dtype: "torch.dtype") -> "Tensor":
    """What a loaded model computes with: the values on the grid, rounded where loading rounds them."""
    value = dense_weight(form)
    if not form.compressed:
        return value.to(dtype)
    # Packed experts are unpacked in the type of their scales, all else in the type that the model is loaded in.
    unpacked = form.layer.index is not None and form.container == "pack-quantized"
    return value.to(form.tensor.scales.dtype) if unpacked else value


def notes_on(layout: Layout) -> Iterator[str]:
    """One sentence for each way in which the file differs from the plan's grids."""
    dense: dict[str, list[str]] = {}
    wide: dict[str, list[str]] = {}
    widened: list[str] = []
    for form in layout.forms:
        scheme, path = form.tensor.scheme, form.layer.path
        if form.layer.index is not None and form.compressed:
            widened += [f"{path} ({form.why})"] if form.why else []
            continue
        if not form.compressed:
            dense.setdefault(form.why, []).append(path)
        elif form.container == "int-quantized" and scheme.bits < 8:
            why = form.why or f"packed {'embeddings' if scheme.symmetric else 'zero points'} do not load"
            wide.setdefault(why, []).append(f"{path} ({scheme.bits} bits)")
    for why, paths in sorted(wide.items()):
        yield f"Stored with 8 bits for each code, since {why}: {listed(paths)}."
    if widened:
        scheme = next(form.tensor.scheme for form in layout.compressed() if form.layer.index is not None)
        yield (
            f"Stored with {scheme.bits} bits for each code and a scale for every {scheme.group} columns, since "
            f"transformers unpacks all experts of a model on one grid: {listed(widened)}."
        )
    for why, paths in sorted(dense.items()):
        yield f"Stored on their grid at 16 bits, since {why}: {listed(paths)}."
    if layout.ties.broken:
        yield f"Stored on their own, since one side of the tie is changed: {listed(sorted(layout.ties.broken))}."
    if any(form.container in PACKED_FLOATS.values() for form in layout.forms):
        yield "What is not quantised is stored as bfloat16, since the loader unpacks 4-bit floats to it."
    elif layout.dtype_name == "bfloat16":
        yield "What is not quantised is stored as bfloat16, since some weights are too large for float16."


def advice_on(model: Any, layout: Layout) -> Iterator[str]:
    """What a user of plain transformers must know to use the checkpoint."""
    if hasattr(model.config, FIELD):
        yield (
            "Its blocks differ in width, which this family's config cannot say: transformers loads it by its auto "
            f"classes with trust_remote_code=True, which runs the {CODE} beside it."
        )
    if layout.compressed() and getattr(model.config, "is_encoder_decoder", False):
        yield (
            "transformers unpacks weights on the first whole forward pass, and generate() calls the encoder alone "
            "before it: after a plain reload, call model.hf_quantizer.compressor.decompress_model(model) first."
        )
