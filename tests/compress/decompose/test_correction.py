import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import inputs, layer, output_loss

from gossamer.compress.decompose import Correction
from gossamer.compress.quantize import Gptq
from gossamer.core.errors import PlanError
from gossamer.core.technique import build


@settings(max_examples=40)
@given(st.integers(0, 9999), st.sampled_from([2, 3]), st.sampled_from([None, 8]), st.integers(1, 12))
def test_after_gptq_it_always_lowers_the_output_error(seed: int, bits: int, group: int | None, rank: int) -> None:
    weight, statistics = layer(seed)
    seen = inputs(seed, 48)
    error = weight - Gptq(bits, group).quantize(weight, statistics).tensor.dequantize()
    added = Correction(rank).correct(error, statistics)
    assert added.rank == rank
    before, after = (output_loss(off, weight, seen) for off in (error, error - added.dense()))
    assert after <= (1 - 0.5 * rank / 12) * before


def test_it_lowers_the_output_error_more_than_the_plain_svd() -> None:
    for seed in range(5):
        weight, statistics = layer(seed, 24)
        seen = inputs(seed, 48)
        error = weight - Gptq(2).quantize(weight, statistics).tensor.dequantize()
        aware, plain = (Correction(4).correct(error, known).dense() for known in (statistics, None))
        assert output_loss(error - aware, weight, seen) < output_loss(error - plain, weight, seen)


def test_nothing_is_added_where_nothing_is_wrong() -> None:
    assert not Correction(4).correct(torch.zeros(12, 48), layer(0)[1]).dense().any()


def test_ranks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PlanError, match="rank 16 is too large for a matrix of 12 x 48: at most 12 is accepted"):
        Correction().correct(layer(0)[0], None)
    for fields in ({"rank": 0}, {"damping": 2.0}):
        with pytest.raises(PlanError, match="technique 'correction'"):
            build("correction", fields)
