"""AWQ's scales never lose to none, and win where few inputs carry the output."""

import pytest
import torch

from gossamer.compress.links import columns_of
from gossamer.compress.quantize import Awq, RoundToNearest
from gossamer.compress.scaling import Reader
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import PlanError
from gossamer.core.technique import build


def problem(seed, outliers=4, rows=24, columns=64):
    draw = torch.Generator().manual_seed(seed)
    size = torch.rand(columns, generator=draw) + 0.5
    size[torch.randperm(columns, generator=draw)[:outliers]] *= 30
    inputs = torch.randn(3000, columns, generator=draw) * size
    return torch.randn(rows, columns, generator=draw), Statistics(inputs.T @ inputs / 3000, 3000)


def loss(weight, statistics, technique, factors):
    found = technique.quantize(weight * factors, None).tensor.dequantize() / factors
    return statistics.loss(found - weight)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("group", [None, 16])
def test_scales_lower_the_output_error_where_inputs_have_outliers(bits, group):
    awq, plain = Awq(bits, group), RoundToNearest(bits, group, clip="none")
    for seed in range(4):
        weight, statistics = problem(seed)
        factors = awq.scales([Reader("a", weight, statistics, torch.arange(64))], 64)
        scaled, without = (loss(weight, statistics, plain, f) for f in (factors, torch.ones(64)))
        assert scaled < 0.9 * without


def test_no_scaling_where_it_does_not_help():
    """Inputs of equal size and columns of equal magnitude leave nothing to gain but luck."""
    weight = torch.ones(8, 32) * torch.tensor([1.0, -1.0]).repeat(16)
    assert Awq(4).scales([Reader("a", weight, Statistics(torch.eye(32), 10), torch.arange(32))], 32) is None


def test_several_readers_and_shared_channels_agree_on_one_factor_each():
    weight, statistics = problem(7)
    source = torch.arange(32).repeat(2)
    source[5] = -1
    readers = [Reader("a", weight, statistics, source), Reader("b", weight[:8], statistics, torch.arange(64))]
    factors = Awq(3).scales(readers, 64)
    assert factors.shape == (64,)
    assert float(columns_of(factors, source)[5]) == 1


def test_bad_settings_are_refused():
    for settings in ({"bits": 9}, {"bits": 4, "steps": 1}, {"bits": 4, "rounding": "up"}):
        with pytest.raises(PlanError):
            build("awq", settings)
