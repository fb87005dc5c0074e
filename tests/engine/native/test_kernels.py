"""The C++ kernels, on every kind of processor code that runs here, against NumPy and double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.native import emulated

from gossamer.core.errors import DeviceError
from gossamer.engine.native import abi, library
from gossamer.engine.native.library import Engine, isas
from gossamer.engine.native.lower import set_grid
from gossamer.engine.native.weights import Weight, float_weight, packed_weight
from gossamer.models.gguf_codes import ShiftedTensor
from gossamer.models.inputs import InputGrid, round_inputs
from gossamer.models.packed import QuantizedTensor, Scheme

HERE = isas()
NO_ARM = pytest.mark.skipif(not emulated.AT_HAND, reason="no compiler and emulator for ARM: make tools")
EVERY = [
    *HERE,
    pytest.param("arm:neon", marks=NO_ARM),
    pytest.param("arm:generic", marks=[NO_ARM, pytest.mark.slow]),
]
TILED = [isa for isa in ("amx", "bf16") if isa in HERE]
"""Code that multiplies many rows as bfloat16."""
BITS = range(2, 9)


def product(
    weight: Weight,
    inputs: torch.Tensor,
    isa: str,
    *,
    wide: bool = True,
    exact: bool = True,
    threads: int = 1,
    grid: InputGrid | None = None,
) -> torch.Tensor:
    """inputs (rows, columns), rounded to a grid if one is given, times the weight, by a program of one step."""
    rows, columns = inputs.shape
    source = torch.zeros(-(-rows // 32) * 32, -(-columns // 16) * 16)
    source[:rows, :columns] = inputs
    out = torch.zeros(len(source), -(-weight.struct.rows // 16) * 16)
    op = abi.Op(kind=abi.OpKind.LINEAR, in_=0, count=1, width=columns)
    op.matrices[0], op.outs[0] = weight.struct, 1
    set_grid(op, grid)
    call = abi.Call(rows=rows, exact=exact, wide=wide)
    for place, buffer in enumerate((source, out)):
        call.buffers[place] = abi.Buffer(buffer.data_ptr(), buffer.stride(0))
    arm, _, code = isa.rpartition(":")
    (emulated.Emulated if arm else Engine)(threads, code).run((abi.Op * 1)(op), call)
    return out[:rows, : weight.struct.rows]


def quantised(rows: int, columns: int, scheme: Scheme, seed: int = 0, unit: bool = False) -> QuantizedTensor:
    """A random weight on a grid; with scales of 1 if `unit`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, scheme.groups(columns))
    codes = torch.randint(scheme.low, scheme.high + 1, (rows, columns), generator=generator).to(torch.int8)
    scales = torch.ones(shape) if unit else torch.rand(shape, generator=generator) + 0.5
    zeros = torch.randint(scheme.low, scheme.high + 1, shape, generator=generator).to(torch.int8)
    return QuantizedTensor(scheme, (rows, columns), codes, scales.half(), None if scheme.symmetric else zeros)


@pytest.mark.parametrize("isa", EVERY)
@settings(max_examples=60)
@given(
    bits=st.sampled_from(BITS),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 8, 24, 128, 256]),
    rows=st.integers(1, 70),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 19),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_whole_inputs_and_unit_scales_give_numpys_integers(
    isa, bits, symmetric, group, rows, groups, tokens, threads, seed
) -> None:
    """With one input of the largest size in every step, all are whole multiples of what they are rounded to."""
    columns = group * groups if group else 37 * groups
    tensor = quantised(rows, columns, Scheme(bits, group, symmetric), seed, unit=True)
    generator = np.random.default_rng(seed)
    inputs = generator.integers(-127, 128, (tokens, columns))
    weight = packed_weight(tensor)
    inputs[:, :: weight.struct.step] = 127
    whole = tensor.codes.numpy().astype(np.int64)
    if tensor.zeros is not None:
        whole = whole - np.repeat(tensor.zeros.numpy().astype(np.int64), columns // tensor.zeros.shape[1], 1)
    expected = inputs @ whole.T
    found = product(weight, torch.tensor(inputs).float(), isa, wide=False, threads=threads).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-3)  # sums of float32 products of integers
    wide = product(weight, torch.tensor(inputs).float(), isa, threads=threads).numpy()
    np.testing.assert_allclose(wide, expected, rtol=1e-6, atol=np.abs(inputs).sum(1).max() * 1e-4)


@pytest.mark.parametrize("isa", EVERY)
@pytest.mark.parametrize("bits", BITS)
def test_rounding_inputs_costs_what_their_bits_say(isa: str, bits: int) -> None:
    tensor = quantised(50, 192, Scheme(bits, 64, False), seed=bits)
    inputs = torch.randn(5, 192, generator=torch.Generator().manual_seed(bits))
    exact = inputs.double() @ tensor.dequantize().double().T
    errors = [
        float((product(packed_weight(tensor), inputs, isa, wide=wide) - exact).norm() / exact.norm())
        for wide in (True, False)
    ]
    assert errors[0] < 1e-4 < errors[1] < 2e-2


@pytest.mark.parametrize("isa", EVERY)
@settings(max_examples=30)
@given(
    bits=st.sampled_from(BITS), rows=st.integers(1, 40), groups=st.integers(1, 4), tokens=st.integers(1, 33),
    exact=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_groups_that_begin_where_they_like(isa, bits, rows, groups, tokens, exact, seed) -> None:
    tensor = quantised(rows, 32 * groups, Scheme(bits, 32), seed)
    draw = torch.Generator().manual_seed(seed)
    weight = ShiftedTensor(tensor, (8 * torch.randn(rows, groups, generator=draw)).half())
    inputs = torch.randn(tokens, 32 * groups, generator=draw)
    exactly = inputs.double() @ weight.dequantize().double().T
    found = product(packed_weight(weight), inputs, isa, exact=exact)
    size = inputs.norm(dim=1)[:, None] * weight.dequantize().norm(dim=1)
    tiled = isa in TILED and not exact and tokens >= 16
    assert float(((found - exactly).abs() / size).max()) < (2**-7 if tiled else 1e-4)


@pytest.mark.parametrize("isa", EVERY)
@pytest.mark.parametrize("wide", [True, False])
def test_a_rows_result_does_not_depend_on_its_company(isa: str, wide: bool) -> None:
    weight = packed_weight(quantised(33, 160, Scheme(4, 32, False)))
    inputs = torch.randn(23, 160, generator=torch.Generator().manual_seed(1))
    together = product(weight, inputs, isa, wide=wide, threads=2)
    apart = torch.cat([product(weight, row[None], isa, wide=wide) for row in inputs])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("isa", EVERY)
@pytest.mark.parametrize(("rows", "columns"), [(40, 96), (17, 50), (3, 7)])
@pytest.mark.parametrize("tokens", [1, 3, 18, 45])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 6e-3)])
def test_float_weights(isa: str, rows: int, columns: int, tokens: int, dtype: torch.dtype, unit: float) -> None:
    generator = torch.Generator().manual_seed(rows + tokens)
    dense = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator)
    for exact in (True, False):
        found = product(float_weight(dense, dtype), inputs, isa, exact=exact, threads=2)
        rounded = inputs.double() @ dense.to(dtype).double().T
        error = float((found - rounded).norm() / rounded.norm())
        tiled = isa in TILED and not exact and tokens >= 16 and dtype != torch.float32
        assert error < (6e-3 if tiled else 1e-6)
        assert float((found - inputs @ dense.T).norm() / rounded.norm()) < unit + (6e-3 if tiled else 0)


@pytest.mark.skipif(not TILED, reason="this processor multiplies no bfloat16")
@settings(max_examples=60)
@given(
    isa=st.sampled_from(TILED or [""]),
    bits=st.sampled_from(BITS),
    group=st.sampled_from([None, 24, 64]),
    symmetric=st.booleans(),
    rows=st.integers(1, 100),
    groups=st.sampled_from([1, 2, 5, 20]),
    tokens=st.integers(16, 70),
    threads=st.integers(1, 3),
)
def test_many_tokens_as_bfloat16_are_right_to_its_precision(
    isa, bits, group, symmetric, rows, groups, tokens, threads
) -> None:
    columns = group * groups if group else 70 * groups
    tensor = quantised(rows, columns, Scheme(bits, group, symmetric))
    inputs = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens))
    exact = inputs.double() @ tensor.dequantize().double().T
    found = product(packed_weight(tensor), inputs, isa, exact=False, threads=threads)
    size = inputs.norm(dim=1)[:, None] * tensor.dequantize().norm(dim=1)
    assert float(((found - exact).abs() / size.clamp(min=1e-9)).max()) < 2**-7


def rounded(inputs: torch.Tensor, grid: InputGrid) -> torch.Tensor:
    """What a layer of torch computes with (see `models/inputs.py`)."""
    layer = torch.nn.Linear(inputs.shape[1], inputs.shape[1], bias=False)
    layer.weight.data = torch.eye(inputs.shape[1])
    round_inputs(layer, grid)
    with torch.no_grad():
        return layer(inputs[None])[0]


GRIDS_OF_INPUTS = st.one_of(
    st.builds(InputGrid, st.just("int"), st.integers(2, 8), st.sampled_from([None, 0.037, 1.5])),
    st.builds(InputGrid, st.just("fp8"), st.just(8), st.sampled_from([None, 0.0021, 0.5])),
    st.builds(InputGrid, st.just("mxfp4"), st.just(4)),
    st.builds(InputGrid, st.just("nvfp4"), st.just(4), st.sampled_from([None, 1.0, 96.5, 2688.0])),
)


@pytest.mark.parametrize("isa", EVERY)
@settings(max_examples=80)
@given(
    grid=GRIDS_OF_INPUTS,
    groups=st.integers(1, 5),
    tokens=st.integers(1, 5),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 300.0]),
    halves=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_inputs_are_rounded_bit_by_bit_as_in_torch(isa, grid, groups, tokens, size, halves, seed) -> None:
    """By the identity as a float32 weight, which adds nothing to what it is given."""
    generator = torch.Generator().manual_seed(seed)
    width = groups * {"mxfp4": 32, "nvfp4": 16}.get(grid.format, 7)
    inputs = size * torch.randn(tokens, width, generator=generator)
    if halves:  # ties, and rows and groups of zeros
        inputs = torch.round(inputs * 4) / 4
    found = product(float_weight(torch.eye(width), torch.float32), inputs, isa, grid=grid)
    assert torch.equal(found, rounded(inputs, grid))


@pytest.mark.parametrize("isa", EVERY)
@pytest.mark.parametrize("group", [None, 24, 256])
@pytest.mark.parametrize("scale", [None, 0.02])
def test_whole_inputs_meet_codes_as_whole_numbers(isa: str, group: int | None, scale: float | None) -> None:
    """8 bits on both sides: nothing is lost but the last bits of sums of float32."""
    tensor = quantised(40, 768, Scheme(8, group, True), seed=3)
    inputs = torch.randn(5, 768, generator=torch.Generator().manual_seed(4))
    inputs[2] *= 40
    grid = InputGrid("int", 8, scale)
    expected = rounded(inputs, grid).double() @ tensor.dequantize().double().T
    found = product(packed_weight(tensor), inputs, isa, grid=grid, threads=2)
    error = (found - expected).abs() / (inputs.norm(dim=1)[:, None] * tensor.dequantize().norm(dim=1))
    assert float(error.max()) < 1e-6


def test_packed_weights_take_the_bytes_of_their_bits() -> None:
    for bits in BITS:
        tensor = quantised(64, 256, Scheme(bits, 64))
        assert packed_weight(tensor).bytes == tensor.bytes == 64 * 256 * bits // 8 + 2 * 64 * 4


def test_without_a_compiler_one_sentence_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"install g\+\+ or clang\+\+"):
        library.build()


def test_a_failing_compiler_is_quoted_and_leaves_nothing(monkeypatch, tmp_path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(DeviceError, match="error: no such thing"):
        library.build()
    assert not list((tmp_path / "cache" / "gossamer").iterdir())


def test_an_unknown_processor_code_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"it runs .*generic"):
        Engine(1, "sve9")
