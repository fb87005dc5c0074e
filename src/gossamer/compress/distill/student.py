"""A compressed model with some of its stored numbers free, and able to pass gradients to them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from gossamer.compress.distill.parts import Parts
from gossamer.compress.standins import StandIns
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.low_rank import LowRank
from gossamer.models.packed import QuantizedTensor
from gossamer.models.structure import modality_of, read_matrix

Train = Literal["scales", "lora", "weights"]


class Free:
    """A tensor that is learnt: `base` + `unit` · change, the change 0 at first, the sum rounded to float16.

    Units make changes relative, so one rate fits all tensors, and a tensor of zeros alone stays as it is. A value that
    float16 would lose (as 0 or as infinity) stays what it was.
    """

    def __init__(self, base: Tensor, unit: Tensor | float) -> None:
        self.base = base.detach().float()
        self.unit = unit
        self.change = torch.zeros_like(self.base, requires_grad=True)

    def value(self) -> Tensor:
        """The tensor, float32 with float16 values; gradients as if it had not been rounded."""
        wanted = self.base + self.unit * self.change
        return self._stored(wanted.detach()).float() + (wanted - wanted.detach())

    def stored(self) -> Tensor:
        """The tensor, float16."""
        with torch.no_grad():
            return self._stored(self.base + self.unit * self.change)

    def _stored(self, wanted: Tensor) -> Tensor:
        rounded = wanted.half()
        lost = ~torch.isfinite(rounded) | ((rounded == 0) & (self.base != 0))
        return torch.where(lost, self.base.half(), rounded)


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A layer's weight. `parts` hold what is not free."""

    layer: Layer
    parts: Parts
    scales: Free | None
    rest: Free | None
    factors: tuple[Free, Free] | None

    @classmethod
    def of(
        cls, layer: Layer, weight: Tensor, parts: Parts, train: Train, rank: int, draw: torch.Generator
    ) -> "_Matrix":
        scales = rest = factors = None
        if parts.tensor is not None and train != "lora" and parts.tensor.scheme.free_scales:
            base = parts.tensor.scales.to(weight.device).float()
            scales = Free(base, base.abs())
        if parts.rest is not None and train == "weights":
            base = parts.rest.to(weight.device)
            rest = Free(base, _size(base) * (base != 0))
        if train == "lora" and parts.low_rank is not None:
            left, right = parts.low_rank.left.to(weight.device), parts.low_rank.right.to(weight.device)
            factors = Free(left, _size(left)), Free(right, _size(right))
        elif train == "lora":
            rank, width = min(rank, layer.rows, layer.columns), layer.columns**0.5
            right = (torch.randn(rank, layer.columns, generator=draw) / width).half().to(weight.device)
            left = torch.zeros(layer.rows, rank, device=weight.device)
            factors = Free(left, _size(weight) * width), Free(right, 1 / width)
        return cls(layer, parts, scales, rest, factors)

    @property
    def free(self) -> list[Free]:
        return [one for one in (self.scales, self.rest, *(self.factors or ())) if one is not None]

    def value(self, like: Tensor) -> Tensor:
        """The whole weight, of the stored weight's shape, and of the type of `like`."""
        layer, parts, device = self.layer, self.parts, like.device
        matrix = torch.zeros(layer.rows, layer.columns, device=device)
        if self.scales is not None and parts.tensor is not None:
            matrix = parts.tensor.steps().to(device).mul(self.scales.value().unsqueeze(-1)).reshape(matrix.shape)
        elif parts.tensor is not None:
            matrix = parts.tensor.dequantize().to(device).reshape(matrix.shape)
        if parts.rest is not None:
            matrix = self.rest.value() if self.rest is not None else parts.rest.to(device)
        if self.factors is not None:
            matrix = matrix + self.factors[0].value() @ self.factors[1].value()
        elif parts.low_rank is not None:
            matrix = matrix + parts.low_rank.dense().to(device)
        return layer.stored(matrix).to(like.dtype)

    def stored(self) -> Parts:
        """The parts as they are now."""
        tensor, rest, low_rank = self.parts.tensor, self.parts.rest, self.parts.low_rank
        if tensor is not None and self.scales is not None:
            tensor = QuantizedTensor(
                tensor.scheme, tensor.shape, tensor.codes, self.scales.stored().cpu(), tensor.zeros
            )
        if self.rest is not None:
            rest = self.rest.stored().float().cpu()
        if self.factors is not None:
            low_rank = LowRank(self.factors[0].stored().cpu(), self.factors[1].stored().cpu())
        return Parts(tensor, rest, low_rank)


class Student:
    """`model` with these layers' scales, factors or weights free, and the norms and biases of their modalities.

    Norms and biases are all vectors among a modality's parameters. Memory beside the model: for each free number its
    base, its change and their gradients; the weights of one block at a time; while learning, every block's input.
    """

    def __init__(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        parts: Mapping[str, Parts],
        train: Train,
        rank: int,
        draw: torch.Generator,
    ) -> None:
        layers = [layer for layer in hierarchy.layers() if layer.path in parts]
        self._matrices: dict[str, list[_Matrix]] = {}
        for layer in layers:
            matrix = _Matrix.of(layer, read_matrix(model, layer), parts[layer.path], train, rank, draw)
            self._matrices.setdefault(layer.tensor, []).append(matrix)
        touched = {layer.path.partition(".")[0] for layer in layers}
        self._vectors = {
            name: Free(model.get_parameter(name), _size(model.get_parameter(name)))
            for name, modality in modality_of(model, hierarchy).items()
            if modality in touched and model.get_parameter(name).dim() == 1
        }
        values = {name: partial(self._value, name) for name in (*self._matrices, *self._vectors)}
        self._originals = {name: model.get_parameter(name) for name in values}
        self._stand_ins = StandIns(model, hierarchy, values)

    @property
    def free(self) -> list[Free]:
        """All that is learnt."""
        matrices = [matrix for found in self._matrices.values() for matrix in found]
        return [one for matrix in matrices for one in matrix.free] + list(self._vectors.values())

    def parts(self) -> dict[str, Parts]:
        """The layers' parts as they are now, by path."""
        return {matrix.layer.path: matrix.stored() for found in self._matrices.values() for matrix in found}

    def running(self) -> AbstractContextManager[None]:
        """Inside, the model computes with the present values (see `StandIns.running`)."""
        return self._stand_ins.running()

    @torch.no_grad()
    def write(self) -> None:
        """The model's own parameters take the present values."""
        for name, original in self._originals.items():
            original.copy_(self._value(name))

    def _value(self, name: str) -> Tensor:
        original = self._originals[name]
        if name in self._vectors:
            return self._vectors[name].value().to(original.dtype)
        found = {matrix.layer.index: matrix.value(original) for matrix in self._matrices[name]}
        if None in found:
            return found[None]
        return torch.stack([found.get(index, part) for index, part in enumerate(original.detach().unbind())])


def _size(values: Tensor) -> float:
    """Root of the mean square."""
    return float(values.detach().float().square().mean().sqrt())
