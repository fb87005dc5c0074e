import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layers import inputs, layer, output_loss

from gossamer.compress.decompose import TruncatedSvd
from gossamer.compress.passes import relative_loss
from gossamer.compress.quantize import Gptq
from gossamer.core.errors import ModelError, PlanError
from gossamer.core.technique import build


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(1, 12))
def test_the_loss_is_that_of_the_outputs(seed: int, rank: int) -> None:
    weight, statistics = layer(seed)
    found = TruncatedSvd(rank=rank).decompose(weight, statistics)
    assert found.rest is None
    assert found.mask is None
    assert found.notes == ()
    expected = output_loss(weight - found.low_rank.dense(), weight, inputs(seed, 48))
    assert found.loss == pytest.approx(expected, rel=1e-3, abs=1e-8)


def test_it_loses_less_than_the_plain_svd_at_every_rank() -> None:
    for seed in range(5):
        weight, statistics = layer(seed)
        for rank in range(1, 12):
            plain = TruncatedSvd(rank=rank).decompose(weight, None)
            aware = TruncatedSvd(rank=rank).decompose(weight, statistics)
            assert aware.loss < relative_loss(weight - plain.low_rank.dense(), weight, statistics)


@settings(max_examples=30)
@given(st.floats(0.12, 1.0), st.integers(8, 40), st.integers(12, 40))
def test_a_ratio_bounds_the_bytes_and_wastes_less_than_one_rank(ratio: float, rows: int, columns: int) -> None:
    weight, _ = layer(0, rows, columns)
    room = ratio * rows * columns / (rows + columns)
    assume(abs(room - round(room)) > 1e-9)
    if room < 1:
        with pytest.raises(PlanError, match=f"leaves no room for factors of a matrix of {rows} x {columns}"):
            TruncatedSvd(ratio=ratio).decompose(weight, None)
        return
    taken = TruncatedSvd(ratio=ratio).decompose(weight, None).low_rank.bytes
    assert taken < ratio * 2 * rows * columns < taken + 2 * (rows + columns)


def test_a_full_rest_makes_the_weight_whole_and_easier_to_quantise() -> None:
    for seed in range(5):
        noise, statistics = layer(seed)
        large = layer(seed + 50, 12, 2)[0] @ layer(seed + 60, 2, 48)[0]
        weight = noise + 3 * large
        found = TruncatedSvd(rank=2, rest="full").decompose(weight, statistics)
        assert found.loss == 0
        assert found.mask is None
        assert found.rest is not None
        assert torch.allclose(found.low_rank.dense() + found.rest, weight, atol=1e-5)
        rounded = Gptq(3).quantize(found.rest, statistics).tensor.dequantize()
        both = relative_loss(weight - found.low_rank.dense() - rounded, weight, statistics)
        assert both < 0.5 * Gptq(3).quantize(weight, statistics).loss


def test_what_is_left_for_later_passes_is_told() -> None:
    assert [TruncatedSvd(rank=1, rest=rest).leaves_rest for rest in ("none", "full")] == [False, True]
    assert not TruncatedSvd(rank=1, rest="full").leaves_zeros


def test_the_same_input_gives_the_same_bytes_and_stays_untouched() -> None:
    weight, statistics = layer(4)
    before = weight.clone()
    one, two = (TruncatedSvd(rank=3).decompose(weight, statistics).low_rank for _ in range(2))
    assert torch.equal(one.left, two.left)
    assert torch.equal(one.right, two.right)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    "fields",
    [{}, {"rank": 2, "ratio": 0.5}, {"rank": 0}, {"ratio": 0.0}, {"ratio": 1.5}, {"rank": 2, "damping": 0.0}],
)
def test_settings_outside_their_ranges_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="technique 'low_rank'"):
        build("low_rank", fields)


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="finite"):
        TruncatedSvd(rank=1).decompose(torch.full((4, 4), torch.inf), None)
