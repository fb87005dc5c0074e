"""Soft roundings give what rounding to nearest gives, follow the weight, and let gradients pass inside the grid."""

import pytest
import torch

from gossamer.compress.quantize.grid import fit_grid
from gossamer.compress.soft_rounding import SoftRounding
from gossamer.models.packed import QuantizedTensor, Scheme

SCHEMES = [Scheme(3, 16), Scheme(4), Scheme(2, 8, symmetric=False), Scheme(4, 16, format="nvfp4")]


def weight_of(seed=0):
    return torch.randn(12, 32, generator=torch.Generator().manual_seed(seed)) + 0.1


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_first_weight_is_rounded_as_it_would_be_stored(scheme):
    weight = weight_of()
    grid = fit_grid(weight, scheme, "mse")
    stored = QuantizedTensor.encode(weight, scheme, grid.scales, grid.zeros).dequantize()
    torch.testing.assert_close(SoftRounding(scheme)(weight), stored)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_grids_follow_the_spans_and_are_fitted_anew_when_asked(scheme):
    rounding, weight, other = SoftRounding(scheme), weight_of(), weight_of(1)
    first = rounding(weight)
    torch.testing.assert_close(rounding(weight * 8), first * 8)
    stale = rounding(other)
    rounding.refit()
    assert float((rounding(other) - other).square().sum()) <= float((stale - other).square().sum())
    assert not torch.equal(rounding(other), stale)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_slopes_are_those_of_the_weight_inside_the_grid(scheme):
    """Along the weight itself rounding is linear, so the slope along it is the rounded weight's."""
    weight = weight_of().requires_grad_()
    rounding, towards = SoftRounding(scheme), weight_of(2)
    rounded = rounding(weight)
    (slope,) = torch.autograd.grad((rounded * towards).sum(), weight)
    torch.testing.assert_close((slope * weight).sum(), (rounded * towards).sum(), rtol=1e-3, atol=1e-3)


def test_rows_of_zeros_and_more_dimensions():
    weight = torch.zeros(4, 2, 3, 3)
    weight[1:] = torch.randn(3, 2, 3, 3)
    rounded = SoftRounding(Scheme(4))(weight)
    assert rounded.shape == weight.shape
    assert not bool(rounded[0].any())
    assert bool(torch.isfinite(rounded).all())
