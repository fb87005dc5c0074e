"""Weights as constants of an OpenVINO graph: codes stay what they are, and plugins unpack them as they multiply.

OpenVINO's plugins recognise `Convert(codes) [- Convert(zeros)] * Convert(scales) [-> Reshape]` before a matrix product
or a table look-up, and keep the codes packed in memory there. Everything is converted to 32-bit floats before it is
computed with, so the graph as written gives exactly `QuantizedTensor.dequantize`.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gossamer.models.packed import QuantizedTensor, brief_dtype

if TYPE_CHECKING:
    import openvino


def unpacked(tensor: QuantizedTensor, looked_up: bool = False) -> "list[openvino.Node]":
    """The nodes that compute the weight, float32, of `tensor.shape`; the last one is the weight.

    Codes of 2 bits are stored as `u2`, 3 and 4 bits as `i4` or (with zero points) `u4`, all others as `i8`: the types
    that the CPU plugin multiplies without expanding them first. It expands `u2` (and OpenVINO's `u3` and `u6`) where a
    table is `looked_up`, so those codes take 4 bits.
    """
    from openvino import opset15 as ops

    kind, shift = _container(tensor, looked_up)
    rows, groups = tensor.scales.shape
    grouped = (rows, groups, -1) if groups > 1 else (rows, -1)
    each = (rows, groups, 1) if groups > 1 else (rows, 1)
    nodes = [ops.convert(_integers(kind, tensor.codes.reshape(grouped).to(torch.int16) + shift), "f32")]
    if tensor.zeros is not None or shift:
        zeros = torch.zeros(1) if tensor.zeros is None else tensor.zeros.reshape(each)
        nodes.append(ops.subtract(nodes[-1], ops.convert(_integers(kind, zeros.to(torch.int16) + shift), "f32")))
    scales = ops.convert(ops.constant(tensor.scales.reshape(each).numpy()), "f32")
    nodes.append(ops.multiply(nodes[-1], scales))
    if tuple(nodes[-1].shape) != tensor.shape:
        nodes.append(ops.reshape(nodes[-1], ops.constant(np.array(tensor.shape, dtype=np.int64)), False))
    return nodes


def widened(values: Tensor) -> "list[openvino.Node]":
    """The nodes that give `values`, which a 16-bit type holds exactly, as float32 from that type; the last one does."""
    from openvino import opset15 as ops

    if brief_dtype(values) == torch.float16:
        stored = ops.constant(values.half().numpy())
    else:
        stored = _constant("bf16", values.bfloat16().view(torch.int16).numpy(), tuple(values.shape))
    return [ops.convert(stored, "f32")]


def _container(tensor: QuantizedTensor, looked_up: bool) -> tuple[str, int]:
    """OpenVINO's type and what is added to codes and zero points in it."""
    if tensor.scheme.bits == 2 and not looked_up:
        return "u2", 2
    if tensor.scheme.bits <= 4:
        return ("i4", 0) if tensor.zeros is None else ("u4", 8)
    return "i8", 0


def _integers(kind: str, values: Tensor) -> Any:
    """A constant of integers of 2, 4 or 8 bits; the first of those that share a byte takes its lowest bits."""
    bits = int(kind[1:])
    flat = values.reshape(-1).numpy().astype(np.uint8) & (2**bits - 1)
    share = 8 // bits
    flat = np.concatenate([flat, np.zeros(-len(flat) % share, dtype=np.uint8)]).reshape(-1, share)
    packed = np.bitwise_or.reduce(flat << np.arange(0, 8, bits, dtype=np.uint8), axis=1, dtype=np.uint8)
    return _constant(kind, packed, tuple(values.shape))


def _constant(kind: str, data: Any, shape: tuple[int, ...]) -> Any:
    """A constant with its own copy of `data`, the bytes of values of type `kind`."""
    import openvino

    tensor = openvino.Tensor(getattr(openvino.Type, kind), openvino.Shape(shape))
    tensor.data.reshape(-1).view(np.uint8)[:] = data.reshape(-1).view(np.uint8)
    return openvino.op.Constant(tensor)
