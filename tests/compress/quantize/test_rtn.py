import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.compress.quantize import RoundToNearest
from gossamer.compress.quantize.grid import fit_grid
from gossamer.core.errors import ModelError, PlanError
from gossamer.core.technique import build
from gossamer.models.number_formats import allowed_scales
from gossamer.models.packed import Scheme

schemes = st.builds(Scheme, st.integers(2, 8), st.sampled_from([None, 8, 16]), st.booleans())


def weight_of(seed: int, rows: int, columns: int, exponent: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draw) * 10.0**exponent


@settings(max_examples=80)
@given(schemes, st.integers(0, 99), st.integers(1, 9), st.integers(1, 4), st.integers(-9, 3))
def test_unclipped_values_are_off_by_half_a_step_at_most(
    scheme: Scheme, seed: int, rows: int, blocks: int, exponent: int
) -> None:
    weight = weight_of(seed, rows, 16 * blocks, exponent)
    tensor = RoundToNearest(scheme.bits, scheme.group, scheme.symmetric, clip="none").quantize(weight, None).tensor
    grouped = (weight - tensor.dequantize()).reshape(rows, tensor.scales.shape[1], -1)
    step = tensor.scales.float().unsqueeze(-1)
    # A symmetric range ends half a step beyond its outermost code; rounding scales to 16 bits moves the ends a little,
    # and the rounded zero point of an asymmetric range moves them by up to half a step.
    slack = 1.0 if not scheme.symmetric else 0.5
    assert bool((grouped.abs() <= step * (slack + 2.0 ** (scheme.bits - 11))).all())


@settings(max_examples=60)
@given(schemes, st.integers(0, 99), st.integers(1, 9), st.integers(1, 4))
def test_every_value_goes_to_the_nearest_point_of_its_grid(scheme: Scheme, seed: int, rows: int, blocks: int) -> None:
    weight = weight_of(seed, rows, 16 * blocks)
    tensor = RoundToNearest(scheme.bits, scheme.group, scheme.symmetric).quantize(weight, None).tensor
    points = torch.arange(scheme.low, scheme.high + 1).reshape(1, 1, 1, -1).float()
    if tensor.zeros is not None:
        points = points - tensor.zeros.float()[:, :, None, None]
    points = points * tensor.scales.float()[:, :, None, None]
    grouped = weight.reshape(rows, tensor.scales.shape[1], -1)
    nearest = (grouped.unsqueeze(-1) - points).abs().amin(-1)
    found = (weight - tensor.dequantize()).reshape(grouped.shape).abs()
    torch.testing.assert_close(found, nearest, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(schemes, st.integers(0, 99))
def test_mse_search_never_loses_to_the_full_range(scheme: Scheme, seed: int) -> None:
    weight = weight_of(seed, 6, 48)
    weight[0, 0] = 30.0
    losses = {
        clip: RoundToNearest(scheme.bits, scheme.group, scheme.symmetric, clip=clip).quantize(weight, None).loss
        for clip in ("none", "mse")
    }
    assert losses["mse"] <= losses["none"] * (1 + 1e-5)


def test_a_symmetric_grid_turns_its_wider_side_to_the_values() -> None:
    weight = torch.tensor([[2.0, 0.0, 1.0, -1.0, 2.0, 1.0, 0.0, -1.0]])
    for sign in (1, -1):
        found = RoundToNearest(2).quantize(sign * weight, None)
        assert found.loss < 1e-3
        assert float(found.tensor.scales) * sign < 0


def test_costs_move_the_grid() -> None:
    weight = torch.tensor([[4.0, 0.9, 1.1, -0.9]])
    costs = torch.tensor([0.001, 1.0, 1.0, 1.0])
    assert float(fit_grid(weight, Scheme(2), "mse", costs).scales.abs()) < float(
        fit_grid(weight, Scheme(2), "mse").scales.abs()
    )


def test_percentile_ignores_the_outliers() -> None:
    weight = torch.randn(4, 1000)
    weight[:, 7] = 100.0
    found = RoundToNearest(4, clip="percentile", percentile=99.0).quantize(weight, None)
    assert float(found.tensor.scales.max()) < 1
    full = RoundToNearest(4, clip="percentile", percentile=100).quantize(weight, None)
    assert torch.equal(full.tensor.codes, RoundToNearest(4, clip="none").quantize(weight, None).tensor.codes)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-8, 6e-8, 1e-5, 3e4, -3e4])
def test_tiny_and_huge_weights_keep_finite_scales(value: float, symmetric: bool) -> None:
    for bits in (2, 8):
        for clip in ("none", "mse"):
            found = RoundToNearest(bits, symmetric=symmetric, clip=clip).quantize(torch.full((2, 8), value), None)
            assert bool(torch.isfinite(found.tensor.dequantize()).all())
            assert bool(torch.isfinite(found.tensor.dequantize().half()).all())
            error = (found.tensor.dequantize() - value).abs().max()
            assert float(error) <= float(found.tensor.scales.float().abs().max()) * 0.53


def test_scales_are_what_float16_stores() -> None:
    scales = allowed_scales(torch.tensor([0.0, 1e-12, 7e-8, 3e-5, 0.1, 1000.3]))
    assert torch.equal(scales, scales.half().float())
    assert scales[0] == 1
    assert bool((scales[1:4] >= torch.tensor([1e-12, 7e-8, 3e-5])).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_weights_that_do_not_fit_are_refused(bad: float) -> None:
    weight = torch.zeros(2, 8)
    weight[1, 3] = bad
    with pytest.raises(ModelError, match="magnitude"):
        RoundToNearest(4).quantize(weight, None)


def test_settings_are_checked() -> None:
    with pytest.raises(PlanError, match="bits"):
        build("rtn", {"bits": 9})
    with pytest.raises(PlanError, match="percentile"):
        build("rtn", {"bits": 4, "percentile": 20})
    with pytest.raises(PlanError, match="does not divide"):
        RoundToNearest(4, 7).quantize(torch.zeros(2, 8), None)
    with pytest.raises(ModelError, match="matrix"):
        RoundToNearest(4).quantize(torch.zeros(2, 8, 2), None)
