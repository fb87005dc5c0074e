"""Layers that hold their weight packed, in the place of transformers' own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.engine.gpu.packed import PackedWeight
from gossamer.engine.gpu.product import product
from gossamer.models.inputs import input_grid, stored_input_grids
from gossamer.models.loading import unpack
from gossamer.models.low_rank import LowRank
from gossamer.models.stored_codes import codes_of_layer


class Packed(nn.Module):
    """A packed weight as a module's buffers, which move with it. Its scales are float16 whatever floats are made of."""

    words: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.layout = weight.layout
        self.register_buffer("words", weight.words)
        self.register_buffer("scales", weight.scales.view(torch.int16))  # as floats, `.to(dtype)` would round them
        self.register_buffer("zeros", weight.zeros)

    @property
    def packed(self) -> PackedWeight:
        """The weight."""
        return PackedWeight(self.layout, self.words, self.scales.view(torch.float16), self.zeros)


class PackedLinear(Packed):
    """`x @ weight.T + bias`, and beside it `x @ right.T @ left.T` of a low-rank matrix."""

    bias: Tensor | None
    left: Tensor | None
    right: Tensor | None

    def __init__(
        self, weight: PackedWeight, bias: Tensor | None = None, beside: LowRank | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:  # fmt: skip
        super().__init__(weight)
        self.in_features, self.out_features = weight.layout.columns, weight.layout.rows
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.register_buffer("left", None if beside is None else beside.left.to(dtype))
        self.register_buffer("right", None if beside is None else beside.right.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(…, columns) → (…, rows)."""
        given = x.reshape(-1, self.in_features)
        found = product(given, self.packed)
        if self.bias is not None:
            found = found + self.bias
        if self.left is not None and self.right is not None:
            found = torch.addmm(found, given @ self.right.T, self.left.T)
        return found.reshape(*x.shape[:-1], self.out_features)


class PackedEmbedding(Packed):
    """Rows of a packed weight, times `scale`."""

    def __init__(self, weight: PackedWeight, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(weight)
        self.num_embeddings, self.embedding_dim = weight.layout.rows, weight.layout.columns
        self.scale, self.dtype = scale, dtype

    def forward(self, ids: Tensor) -> Tensor:
        """(…) token ids → (…, columns)."""
        rows = self.packed.take(ids.flatten()).dense().to(self.dtype) * self.scale
        return rows.reshape(*ids.shape, self.embedding_dim)


@dataclass(frozen=True)
class Report:
    """How many layers became packed, how many of them take more bits for a code than theirs, how many that were stored
    as codes did not fit and are dense, and the bytes of all weights."""

    packed: int
    widened: int
    dense: int
    weight_bytes: int


def pack_layers(model: nn.Module, low_ranks: Mapping[str, LowRank], dtype: torch.dtype, device: torch.device) -> Report:
    """Readies a model as it is stored (see `open_packed`) for a GPU, in place.

    Layers on grids of whole numbers become packed ones; everything else becomes dense, its low-rank matrix added, and
    parameters are rounded to `dtype`.
    """
    packed: list[Packed] = []
    coded = 0
    for name, layer in list(model.named_modules()):
        was_coded = hasattr(layer, "quantization_scheme")
        coded += was_coded
        fitting = _packed(layer, low_ranks.get(name), dtype, device) if was_coded else None
        if fitting is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, fitting.to(device))
            packed.append(fitting)
            continue
        unpack(layer)
        if name in low_ranks:
            weight = layer.get_parameter("weight")
            weight.data = weight.float() + low_ranks[name].dense().reshape(weight.shape)
    move(model, dtype, device)
    layouts = [layer.layout for layer in packed]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *_buffers(packed))}
    widened = sum(layout.width != layout.bits for layout in layouts)
    return Report(len(packed), widened, coded - len(packed), sum(held.values()))


def move(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Parameters as `dtype`, and all on the device; buffers keep their types, as rotary embeddings' rates must."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype if parameter.is_floating_point() else parameter.dtype)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.to(device)


def _buffers(packed: list[Packed]) -> list[Tensor]:
    return [buffer for layer in packed for buffer in layer.buffers()]


def _packed(layer: Any, beside: LowRank | None, dtype: torch.dtype, device: torch.device) -> Packed | None:
    """The layer with its codes packed; None where it has none, or in a form that is not packed for a GPU."""
    if input_grid(layer) is not None or stored_input_grids(layer):
        return None
    codes = codes_of_layer(layer)
    if codes is None or codes.codes.dim() != 2:
        return None
    try:
        weight = PackedWeight.pack(codes.to(device))
    except ValueError:
        return None
    if isinstance(layer, nn.Embedding) and beside is None:
        return PackedEmbedding(weight, float(getattr(layer, "scalar_embed_scale", 1.0)), dtype)
    if type(layer).__name__ in ("Linear", "CompressedLinear"):
        return PackedLinear(weight, getattr(layer, "bias", None), beside, dtype)
    return None
