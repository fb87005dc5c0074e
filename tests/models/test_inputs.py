"""Rounded inputs: on a grid of the stated numbers, with gradients, and read back from a checkpoint as they were."""

import pytest
import torch
from torch import nn

from gossamer.models.inputs import InputGrid, input_grid, round_inputs
from gossamer.models.number_formats import FLOATS, values_of

GRIDS = {
    "int8": InputGrid(),
    "int4": InputGrid(bits=4),
    "int8 static": InputGrid.spanning(3.0, "int", 8),
    "fp8": InputGrid("fp8"),
    "fp8 static": InputGrid.spanning(3.0, "fp8", 8),
    "mxfp4": InputGrid("mxfp4", 4),
    "nvfp4": InputGrid.spanning(3.0, "nvfp4", 4),
}


def rounded(grid: InputGrid, values: torch.Tensor) -> torch.Tensor:
    layer = nn.Linear(values.shape[-1], values.shape[-1], bias=False)
    layer.weight.data = torch.eye(values.shape[-1])
    round_inputs(layer, grid)
    assert input_grid(layer) == grid
    return layer(values)


@pytest.mark.parametrize("name", GRIDS)
def test_values_of_a_token_lie_on_few_numbers_and_near_where_they_were(name):
    grid = GRIDS[name]
    values = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    with torch.no_grad():
        found = rounded(grid, values)
    group = FLOATS[grid.format].group if grid.format != "int" else None
    for token in found.reshape(-1, group or 64):
        codes = 256 if grid.format == "fp8" else 2**grid.bits
        assert len(token.unique()) <= codes
    error = float((found - values).square().mean() / values.square().mean())
    assert 0 < error < (0.02 if grid.bits == 4 else 2e-3)


def test_one_scale_for_all_tokens_clips_what_is_larger():
    grid = InputGrid.spanning(2.0, "int", 8)
    with torch.no_grad():
        found = rounded(grid, torch.tensor([[[100.0, 1.0, -100.0, 0.0]]]))
    step = 2.0 / 127.5
    assert torch.allclose(found, torch.tensor([127 * step, 64 * step, -128 * step, 0.0]))


def test_fp8_values_are_the_formats_own_times_the_tokens_scale():
    values = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = rounded(InputGrid("fp8"), values)
    scale = values.abs().amax(-1, keepdim=True) / 448
    known = values_of(torch.arange(-128, 128, dtype=torch.int8), "fp8")
    gap = (found / scale).unsqueeze(-1) - known[torch.isfinite(known)]
    assert gap.abs().amin(-1).max() < 1e-3


def test_gradients_pass_and_rounding_ends():
    layer = nn.Linear(8, 4)
    values = torch.randn(2, 3, 8, requires_grad=True)
    round_inputs(layer, InputGrid(bits=4))
    layer(values).sum().backward()
    assert torch.allclose(values.grad, layer.weight.sum(0).expand_as(values))
    round_inputs(layer, None)
    assert input_grid(layer) is None
    assert torch.equal(layer(values), nn.functional.linear(values, layer.weight, layer.bias))
