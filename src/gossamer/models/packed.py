"""Low-bit weights: the grid they lie on, their dense packing, and the bytes they take in a checkpoint.

A weight is `scale * (code - zero)`: signed codes, one 16-bit scale (and, on asymmetric grids, one zero point) for each
row or for each group of neighbouring columns. This is the convention of compressed-tensors, whose own routine does the
packing, so vLLM and transformers read what is written here. Codes reach one step further down than up, so a symmetric
grid may have a negative scale: its wider side then serves the positive weights. In the float formats a code stands for
a number of few bits in place of itself (see `number_formats.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gossamer.core.errors import ModelError, PlanError
from gossamer.models.hierarchy import LayerKind
from gossamer.models.number_formats import FLOATS, FORMATS, Format, codes_of, round_, values_of

Container = Literal[
    "pack-quantized", "int-quantized", "float-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized", "dense"
]

PACKED_FLOATS: dict[Format, Container] = {"mxfp4": "mxfp4-pack-quantized", "nvfp4": "nvfp4-pack-quantized"}
"""The containers that hold two codes in a byte; their loader unpacks them to bfloat16."""

LARGEST_WEIGHT = 32768.0
"""Magnitude up to which every grid's values stay inside the range of 16-bit floats."""


@dataclass(frozen=True)
class Scheme:
    """A grid: `bits` per code (2 to 8), `group` columns for each scale (None: the whole row), zero point or none.

    `format` says what codes stand for. A float format settles all else. Raises `PlanError` outside those ranges.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True
    format: Format = "int"

    def __post_init__(self) -> None:
        form = FLOATS.get(self.format)
        if form is not None and (self.bits, self.group, self.symmetric) != (form.bits, form.group, True):
            group = f"group {form.group}" if form.group else "no group"
            raise PlanError(f"{self.format} has {form.bits} bits, {group} and no zero point: give it just these")
        if not 2 <= self.bits <= 8:
            raise PlanError(f"bits cannot be {self.bits}: weights are quantised to 2 to 8 bits")
        if self.group is not None and self.group < 1:
            raise PlanError(f"group cannot be {self.group}: give a number of columns, or none for whole rows")

    @property
    def low(self) -> int:
        """The least number that a code stands for; of whole numbers -2^(bits-1)."""
        return -(1 << (self.bits - 1)) if self.format == "int" else -FLOATS[self.format].largest

    @property
    def high(self) -> int:
        """The greatest number that a code stands for; of whole numbers 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1 if self.format == "int" else FLOATS[self.format].largest

    @property
    def free_scales(self) -> bool:
        """Whether scales may be any 16-bit floats."""
        return self.format not in PACKED_FLOATS

    def fitted(self, columns: int) -> "Scheme":
        """The same with the largest group below its own that divides the columns (see `fitting_group`).

        Float formats, whose group is fixed, stay as they are.
        """
        return replace(self, group=fitting_group(columns, self.group)) if self.format == "int" else self

    def round_(self, values: Tensor) -> Tensor:
        """The nearest numbers that codes stand for, in place; `values` are in units of the scale."""
        return values.round_().clamp_(self.low, self.high) if self.format == "int" else round_(values, self.format)

    def encode(self, numbers: Tensor) -> Tensor:
        """The codes int8 that stand for these numbers."""
        return numbers.to(torch.int8) if self.format == "int" else codes_of(numbers, self.format)

    def decode(self, codes: Tensor) -> Tensor:
        """The numbers float32 that these codes int8 stand for."""
        return codes.float() if self.format == "int" else values_of(codes, self.format)

    def groups(self, columns: int) -> int:
        """How many scales a row of `columns` has. Raises `PlanError` if the group does not divide the columns."""
        if self.group is None:
            return 1
        if columns % self.group and self.format != "int":
            raise PlanError(f"{self.format} takes columns in groups of {self.group}, this layer has {columns}")
        if columns % self.group:
            fitting = fitting_group(columns, self.group)
            other = f"group {fitting}" if fitting else "whole rows (no group)"
            raise PlanError(f"group {self.group} does not divide the {columns} columns of this layer: use {other}")
        return columns // self.group


STATE_PARTS = ("scheme", "shape", "packed", "scales", "zeros")
"""The names of the tensors that `QuantizedTensor.to_state` writes; zeros on asymmetric grids only."""


def fitting_group(columns: int, group: int | None) -> int | None:
    """The largest divisor of `columns` up to `group` that is a multiple of 8; None (whole rows) where there is none."""
    if group is None:
        return None
    return next((size for size in range(group - group % 8, 7, -8) if columns % size == 0), None)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A weight on a grid.

    `shape` is the dense weight's; the matrix view has rows = shape[0] and columns = the product of the rest.
    `codes` int8 (rows, columns) that fit the scheme's bits; `scales` float16 (rows, groups), finite and never zero;
    `zeros` int8 (rows, groups) in the range of the codes, None on symmetric grids.
    Raises `ModelError` if the parts contradict each other or hold values outside those ranges.
    """

    scheme: Scheme
    shape: tuple[int, ...]
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    def __post_init__(self) -> None:
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        groups = (rows, self.scheme.groups(columns))
        _check("codes", self.codes, torch.int8, (rows, columns))
        _check("scales", self.scales, torch.float16, groups)
        if self.scheme.symmetric != (self.zeros is None):
            raise ModelError("a quantised weight needs zero points exactly where its grid is asymmetric")
        _check_codes("codes", self.codes, self.scheme)
        if self.zeros is not None:
            _check("zero points", self.zeros, torch.int8, groups)
            _check_codes("zero points", self.zeros, self.scheme)
        if not bool((torch.isfinite(self.scales) & (self.scales != 0)).all()):
            raise ModelError("a quantised weight has a scale that is zero or not finite")
        if self.scheme.format == "mxfp4" and not bool((self.scales.frexp().mantissa == 0.5).all()):
            raise ModelError("a weight in mxfp4 has a scale that is no power of two")

    @classmethod
    def encode(cls, weight: Tensor, scheme: Scheme, scales: Tensor, zeros: Tensor | None = None) -> "QuantizedTensor":
        """The nearest codes to `weight` (any shape of two dimensions or more) on the grid of the given rounded scales.

        `scales` float16 (rows, groups); `zeros` integers (rows, groups), or None on symmetric grids.
        """
        matrix = weight.reshape(weight.shape[0], -1)
        grouped = matrix.reshape(matrix.shape[0], scheme.groups(matrix.shape[1]), -1)
        steps = grouped.float() / scales.float().unsqueeze(-1)
        if zeros is None:
            steps = scheme.round_(steps)
        else:
            steps = steps.round_().add_(zeros.unsqueeze(-1)).clamp_(scheme.low, scheme.high)
        codes = scheme.encode(steps).reshape(matrix.shape)
        return cls(scheme, tuple(weight.shape), codes, scales, None if zeros is None else zeros.to(torch.int8))

    def to(self, device: "torch.device | str") -> "QuantizedTensor":
        """The same on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device), zeros=zeros)

    def dequantize(self) -> Tensor:
        """The weight, float32, of `shape`. Exact: the products need fewer bits than float32 has."""
        return self.steps().mul_(self.scales.float().unsqueeze(-1)).reshape(self.shape)

    def steps(self) -> Tensor:
        """What the scales multiply, float32 (rows, groups, columns each): the codes' numbers less the zero points."""
        grouped = self.scheme.decode(self.codes).reshape(self.shape[0], self.scales.shape[1], -1)
        return grouped if self.zeros is None else grouped - self.zeros.unsqueeze(-1)

    @property
    def bytes(self) -> int:
        """Bytes of the densely packed form: codes, scales and zero points."""
        return packed_bytes(self.shape, self.scheme)

    def packed(self) -> Tensor:
        """The codes, int32 (rows, ceil(columns * bits / 32)), in compressed-tensors' `weight_packed` layout."""
        return _pack(self.codes, self.scheme.bits)

    def to_state(self, prefix: str = "") -> dict[str, Tensor]:
        """Tensors for a safetensors file, codes and zeros packed at exactly `bits` each; keys start with `prefix`."""
        scheme = self.scheme
        state = {
            f"{prefix}scheme": scheme_state(scheme).int(),
            f"{prefix}shape": torch.tensor(self.shape, dtype=torch.int64),
            f"{prefix}packed": self.packed(),
            f"{prefix}scales": self.scales.contiguous(),
        }
        if self.zeros is not None:
            state[f"{prefix}zeros"] = _pack(self.zeros.T.contiguous(), scheme.bits)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], prefix: str = "") -> "QuantizedTensor":
        """What `to_state` wrote. Raises `ModelError` if a part is missing or does not fit the others."""
        try:
            bits, group, symmetric, form = state[f"{prefix}scheme"].tolist()
            shape = tuple(state[f"{prefix}shape"].tolist())
            packed, scales = state[f"{prefix}packed"], state[f"{prefix}scales"]
            zeros = None if symmetric else state[f"{prefix}zeros"]
        except (KeyError, ValueError) as error:
            raise ModelError(f"stored weight {prefix!r} is incomplete: {error} is missing; write it anew") from error
        scheme = Scheme(bits, group or None, bool(symmetric), FORMATS[form])
        rows, columns = shape[0], math.prod(shape[1:])
        _check("packed codes", packed, torch.int32, (rows, _words(columns, bits)))
        if zeros is not None:
            groups = scheme.groups(columns)
            _check("packed zero points", zeros, torch.int32, (groups, _words(rows, bits)))
            zeros = _unpack(zeros, bits, (groups, rows)).T.contiguous()
        return cls(scheme, shape, _unpack(packed, bits, (rows, columns)), scales, zeros)


def container(kind: LayerKind, scheme: Scheme | None) -> Container:
    """The on-disk format that plain transformers reloads for a layer of this kind on this grid.

    Packed zero points and packed embeddings do not load (transformers 5.23, compressed-tensors 0.20), so those take
    8 bits for each code; convolutions, embeddings in float formats, and layers without a scheme stay dense at 16 bits.
    Experts are asked for as linear (see `stacks.py`).
    """
    if scheme is None or kind not in ("linear", "embedding"):
        return "dense"
    if scheme.format != "int":
        return PACKED_FLOATS.get(scheme.format, "float-quantized") if kind == "linear" else "dense"
    return "pack-quantized" if kind == "linear" and scheme.symmetric else "int-quantized"


def stored_bytes(kind: LayerKind, shape: Sequence[int], scheme: Scheme | None) -> int:
    """Bytes of a layer's weight in the checkpoint: codes, scales, zero points and the stored shape.

    Raises `PlanError` if the group does not divide the columns.
    """
    form = container(kind, scheme)
    if scheme is None or form == "dense":
        return 2 * math.prod(shape)
    rows, columns = shape[0], math.prod(shape[1:])
    scales = rows * scheme.groups(columns)
    if scheme.format in PACKED_FLOATS:
        return rows * columns // 2 + scales + (4 if scheme.format == "nvfp4" else 0)
    if form == "pack-quantized":
        return 4 * rows * _words(columns, scheme.bits) + 2 * scales + 16
    return rows * columns + 2 * scales + (0 if scheme.symmetric else scales)


def packed_bytes(shape: Sequence[int], scheme: Scheme) -> int:
    """Bytes of the densely packed form (the bank's), whatever containers the public loaders serve."""
    rows, columns = shape[0], math.prod(shape[1:])
    groups = scheme.groups(columns)
    if scheme.format in PACKED_FLOATS:
        return stored_bytes("linear", shape, scheme)
    zeros = 0 if scheme.symmetric else 4 * groups * _words(rows, scheme.bits)
    return 4 * rows * _words(columns, scheme.bits) + 2 * rows * groups + zeros


def scheme_state(scheme: Scheme) -> Tensor:
    """A scheme as the int32 numbers that `QuantizedTensor.from_state` reads: bits, group or 0, symmetry, format."""
    return torch.tensor([scheme.bits, scheme.group or 0, int(scheme.symmetric), FORMATS.index(scheme.format)])


def brief_dtype(values: Tensor) -> torch.dtype:
    """The 16-bit type for float values off any grid: float16, or bfloat16 where only that holds them or their range."""
    half = values.half()
    if bool((half.float() == values).all()):
        return torch.float16
    exact = bool((values.bfloat16().float() == values).all())
    return torch.float16 if not exact and bool(torch.isfinite(half).all()) else torch.bfloat16


def _words(elements: int, bits: int) -> int:
    return -(-elements * bits // 32)


def _pack(codes: Tensor, bits: int) -> Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return pack_to_int32(codes, bits)


def _unpack(words: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    return unpack_from_int32(words.contiguous(), bits, torch.Size(shape)).contiguous()


def _check(what: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        wanted = f"{str(dtype).removeprefix('torch.')} {shape}"
        raise ModelError(f"the {what} of a quantised weight are {found}, they must be {wanted}")


def _check_codes(what: str, tensor: Tensor, scheme: Scheme) -> None:
    if scheme.bits == 8 or tensor.numel() == 0:
        return
    low, high = torch.aminmax(tensor)
    reach = 1 << (scheme.bits - 1)
    if int(low) < -reach or int(high) >= reach:
        raise ModelError(f"the {what} of a quantised weight leave the range [{-reach}, {reach - 1}] of its bits")
