"""Floats of few bits: every code, rounding to the nearest, and what compressed-tensors unpacks."""

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.compress.quantize.grid import fit_grid
from gossamer.core.errors import ModelError, PlanError
from gossamer.models.compressed_tensors import parts, quantization_config
from gossamer.models.number_formats import FLOATS, allowed_scales, codes_of, round_, tensor_unit, values_of
from gossamer.models.packed import QuantizedTensor, Scheme, container, stored_bytes

FORMS = tuple(FLOATS)


def numbers(form: str) -> torch.Tensor:
    """Every number that the format has, ascending."""
    bits = FLOATS[form].bits
    found = values_of(torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.int8), form)
    return found[torch.isfinite(found)].unique()


def scheme_of(form: str) -> Scheme:
    return Scheme(FLOATS[form].bits, FLOATS[form].group, format=form)


def tensor_of(form: str, seed: int, rows: int, columns: int, size: float) -> tuple[torch.Tensor, QuantizedTensor]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    grid = fit_grid(weight, scheme_of(form), "mse")
    return weight, QuantizedTensor.encode(weight, scheme_of(form), grid.scales)


@pytest.mark.parametrize("form", FORMS)
def test_codes_and_numbers_are_one_to_one(form):
    known = numbers(form)
    assert len(known) == (15 if FLOATS[form].bits == 4 else 253)
    assert known.abs().max() == FLOATS[form].largest
    assert torch.equal(values_of(codes_of(known, form), form), known)
    reach = 2 ** (FLOATS[form].bits - 1)
    assert -reach <= int(codes_of(known, form).min()) <= int(codes_of(known, form).max()) < reach


@pytest.mark.parametrize("form", FORMS)
@given(values=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=50))
@settings(max_examples=60)
def test_rounding_finds_the_nearest_number(form, values):
    wanted = torch.tensor(values)
    known = numbers(form)
    found = round_(wanted.clone(), form)
    assert bool(torch.isin(found, known).all())
    clamped = wanted.clamp(known[0], known[-1])
    nearest = (clamped[:, None] - known[None]).abs().amin(1)
    assert torch.equal((clamped - found).abs(), nearest)


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 99), size=st.sampled_from([1e-6, 1e-3, 0.02, 1.0, 900.0]), rows=st.integers(1, 5))
@settings(max_examples=25)
def test_what_compressed_tensors_unpacks_is_what_was_meant(form, seed, size, rows):
    _, tensor = tensor_of(form, seed, rows, 64, size)
    kind = container("linear", tensor.scheme)
    stored = parts(tensor, kind)
    assert sum(part.nbytes for part in stored.values()) == stored_bytes("linear", (rows, 64), tensor.scheme)
    entry = quantization_config({"a": (kind, tensor.scheme, None)}, {}, [])["config_groups"]["group_0"]
    scheme = QuantizationScheme(**entry)
    stored["weight_scale"] = stored["weight_scale"].float() if form == "fp8" else stored["weight_scale"]
    unpacked = BaseCompressor.get_value_from_registry(kind).decompress(stored, scheme)["weight"]
    assert torch.equal(
        unpacked.float(), tensor.dequantize().bfloat16().float() if form != "fp8" else tensor.dequantize()
    )
    if size >= 1e-3:
        assert torch.equal(unpacked.float(), tensor.dequantize()), "4-bit floats are exact in bfloat16"


@pytest.mark.parametrize("form", FORMS)
def test_state_keeps_every_bit(form):
    _, tensor = tensor_of(form, 0, 6, 96, 0.1)
    again = QuantizedTensor.from_state(tensor.to_state("a."), "a.")
    assert again.scheme == tensor.scheme
    assert torch.equal(again.codes, tensor.codes)
    assert torch.equal(again.dequantize(), tensor.dequantize())


@pytest.mark.parametrize("form", FORMS)
def test_the_searched_grid_is_no_worse_than_the_one_that_spans_all(form):
    weight, found = tensor_of(form, 1, 16, 128, 0.05)
    spanning = QuantizedTensor.encode(weight, found.scheme, fit_grid(weight, found.scheme, "none").scales)
    error, other = ((weight - tensor.dequantize()).square().sum() for tensor in (found, spanning))
    assert error <= other
    assert error < 0.02 * weight.square().sum()


def test_scales_are_those_that_the_format_stores():
    scales = torch.tensor([0.0, 1e-9, 3e-4, 0.3, 5.0])
    assert torch.equal(allowed_scales(scales, "mxfp4"), torch.tensor([1.0, 2.0**-24, 2.0**-11, 0.5, 8.0]))
    unit = tensor_unit(30.0, "nvfp4")
    found = allowed_scales(scales, "nvfp4", unit)
    assert torch.equal((found / unit).to(torch.float8_e4m3fn).float() * unit, found)
    assert torch.equal(found.half().float(), found)
    assert tensor_unit(30.0, "fp8") == 1.0


def test_a_float_format_settles_bits_group_and_symmetry():
    with pytest.raises(PlanError, match="mxfp4 has 4 bits, group 32 and no zero point"):
        Scheme(4, 64, format="mxfp4")
    with pytest.raises(PlanError, match="fp8 has 8 bits, no group"):
        Scheme(8, 32, format="fp8")
    with pytest.raises(ModelError, match="no power of two"):
        QuantizedTensor(
            scheme_of("mxfp4"), (1, 32), torch.zeros(1, 32, dtype=torch.int8), torch.full((1, 1), 0.3).half()
        )
    assert scheme_of("nvfp4").fitted(40) == scheme_of("nvfp4")
    assert container("embedding", scheme_of("fp8")) == "dense"
