"""The structs of `src/abi.h`, field by field."""

import ctypes
from enum import IntEnum

LANES = 16
MATRICES = 3
BUFFERS = 16
TABLES = 2
MOST_STEP = 128
MOST_NORM = 16384
MOST_HEAD_DIM = 512


class MatrixKind(IntEnum):
    FLOAT32, BFLOAT16, FLOAT16, PACKED = range(4)


class OpKind(IntEnum):
    EMBED, LINEAR, NORM, ROTATE_STORE, ATTEND, ROUTE, EXPERTS, BLEND = range(8)


class Prologue(IntEnum):
    NOTHING, RMS, GATED = range(3)


class Activation(IntEnum):
    SILU, GELU, GELU_TANH, RELU, RELU2, QUICK_GELU = range(6)


class Grid(IntEnum):
    FREE, WHOLE, E4M3, MXFP4, NVFP4 = range(5)


_int, _long, _float, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Matrix(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("kind", "rows", "columns", "bits")),
        *((name, _int) for name in ("step", "steps_per_scale", "scale_groups", "unused")),
        *((name, _pointer) for name in ("codes", "scales", "zeros", "least")),
    ]


class Op(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("kind", "in_", "aux", "out", "count", "prologue", "activation", "accumulate")),
        *((name, _int) for name in ("heads", "kv_heads", "head_dim", "rotated")),
        *((name, _int) for name in ("layer", "window", "table", "grid")),
        *((name, _float) for name in ("eps", "scale", "softcap")),
        ("width", _int),
        ("weight", _pointer),
        ("matrices", Matrix * MATRICES),
        ("outs", _int * MATRICES),
        ("grid_bits", _int),
        ("biases", _pointer * MATRICES),
        ("inner", _pointer),
    ]


class Buffer(ctypes.Structure):
    _fields_ = [("data", _pointer), ("stride", _long)]


class Call(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("rows", "exact", "wide", "half_cache")),
        ("capacity", _long),
        *((name, _pointer) for name in ("tokens", "slots", "places", "until")),
        ("cosines", _pointer * TABLES),
        ("sines", _pointer * TABLES),
        ("keys", _pointer),
        ("values", _pointer),
        ("buffers", Buffer * BUFFERS),
    ]
