import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.compress.passes import relative_loss
from gossamer.compress.quantize import Gptq, RoundToNearest
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import ModelError, PlanError
from gossamer.core.technique import build

bits_and_group = st.tuples(st.integers(2, 8), st.sampled_from([None, 8, 32]), st.booleans())


def layer(seed: int, rows: int = 12, columns: int = 96, tokens: int = 400) -> tuple[Tensor, Statistics]:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw)
    mixing = torch.randn(columns, columns, generator=draw) * torch.rand(columns, generator=draw).square() * 3
    inputs = torch.randn(tokens, columns, generator=draw) @ mixing + torch.randn(columns, generator=draw)
    hessian = inputs.T @ inputs / tokens
    return weight, Statistics((hessian + hessian.T) / 2, tokens)


@settings(max_examples=20)
@given(bits_and_group, st.integers(0, 99), st.booleans(), st.sampled_from(["none", "mse"]))
def test_uncorrelated_inputs_leave_plain_rounding(
    setting: tuple[int, int | None, bool], seed: int, act_order: bool, clip: str
) -> None:
    bits, group, symmetric = setting
    weight, _ = layer(seed)
    found = Gptq(bits, group, symmetric, act_order, clip=clip).quantize(weight, Statistics(torch.eye(96), 1))
    plain = RoundToNearest(bits, group, symmetric, clip=clip).quantize(weight, None)
    assert torch.equal(found.tensor.codes, plain.tensor.codes)
    assert torch.equal(found.tensor.scales, plain.tensor.scales)
    assert found.notes == ()


@settings(max_examples=20)
@given(bits_and_group, st.integers(0, 99), st.booleans())
def test_output_error_is_below_rounding(setting: tuple[int, int | None, bool], seed: int, act_order: bool) -> None:
    bits, group, symmetric = setting
    weight, statistics = layer(seed)
    found = Gptq(bits, group, symmetric, act_order, clip="mse").quantize(weight, statistics)
    plain = RoundToNearest(bits, group, symmetric, clip="mse").quantize(weight, statistics)
    assert torch.equal(found.tensor.scales, plain.tensor.scales)
    assert found.loss < plain.loss
    of_weight, of_rounded = (relative_loss(weight - one.tensor.dequantize(), weight, None) for one in (found, plain))
    assert of_weight >= of_rounded * 0.999


def test_blocks_agree_with_the_paper_column_by_column() -> None:
    weight, statistics = layer(3, columns=160)
    settings_ = Gptq(3, 32, act_order=False, clip="mse")
    found = settings_.quantize(weight, statistics).tensor
    damped = statistics.hessian.double() + 0.01 * statistics.hessian.diagonal().mean().double() * torch.eye(160)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    work, scales = weight.double(), found.scales.double()
    codes = torch.zeros_like(work)
    for j in range(160):
        scale = scales[:, j // 32]
        codes[:, j] = (work[:, j] / scale).round().clamp(-4, 3)
        error = (work[:, j] - scale * codes[:, j]) / upper[j, j]
        work[:, j + 1 :] -= error.outer(upper[j, j + 1 :])
    assert float((codes != found.codes).double().mean()) < 0.005


def test_the_order_of_columns_does_not_matter_to_act_order() -> None:
    """Shuffling a layer's inputs (whole rows share a scale) shuffles its codes and changes nothing else."""
    weight, statistics = layer(4)
    shuffle = torch.randperm(96)
    shuffled = Statistics(statistics.hessian[shuffle][:, shuffle].contiguous(), statistics.tokens)
    for clip in ("none", "hessian"):
        one = Gptq(4, clip=clip).quantize(weight, statistics)
        two = Gptq(4, clip=clip).quantize(weight[:, shuffle].contiguous(), shuffled)
        assert float((two.tensor.codes != one.tensor.codes[:, shuffle]).float().mean()) < 0.01
        assert two.loss == pytest.approx(one.loss, rel=0.02)


def test_act_order_and_costs_help_where_inputs_differ() -> None:
    losses = {}
    for act_order in (False, True):
        for clip in ("mse", "hessian"):
            found = [Gptq(3, 32, act_order=act_order, clip=clip).quantize(*layer(seed)).loss for seed in range(4)]
            losses[act_order, clip] = sum(found)
    assert losses[True, "mse"] < losses[False, "mse"]
    assert losses[True, "hessian"] < losses[True, "mse"]


def test_the_same_input_gives_the_same_bytes() -> None:
    for symmetric in (True, False):
        one, two = (Gptq(3, 32, symmetric).quantize(*layer(5)).tensor for _ in range(2))
        assert torch.equal(one.packed(), two.packed())
        assert torch.equal(one.scales, two.scales)


def test_neither_the_weight_nor_the_statistics_change() -> None:
    weight, statistics = layer(6)
    before, hessian = weight.clone(), statistics.hessian.clone()
    Gptq(2, 32).quantize(weight, statistics)
    RoundToNearest(2, 32).quantize(weight, statistics)
    assert torch.equal(weight, before)
    assert torch.equal(statistics.hessian, hessian)


def test_dead_columns_are_rounded_and_noted() -> None:
    weight, statistics = layer(7)
    hessian = statistics.hessian.clone()
    hessian[[2, 5]] = 0
    hessian[:, [2, 5]] = 0
    found = Gptq(4, 32).quantize(weight, Statistics(hessian, 400))
    assert found.notes == ("2 input columns were never active in calibration: they are rounded to nearest",)
    error = (found.tensor.dequantize() - weight)[:, [2, 5]].abs()
    assert bool((error <= found.tensor.scales.float().abs()[:, :1] * 1.5).all())


def test_singular_hessians_never_pass_silently() -> None:
    weight, _ = layer(8)
    plain = RoundToNearest(4, 32).quantize(weight, None).tensor
    for statistics in (
        None,
        Statistics(torch.zeros(96, 96), 1),
        Statistics(torch.eye(96) - torch.ones(96, 96) * 0.5, 1),
    ):
        found = Gptq(4, 32).quantize(weight, statistics)
        assert torch.equal(found.tensor.codes, plain.codes)
        assert found.notes[0].startswith("rounded to nearest")
    shaky = torch.ones(96, 96)
    shaky.diagonal().fill_(0.95)
    assert "damping was raised" in Gptq(4, 32).quantize(weight, Statistics(shaky, 1)).notes[0]
    with pytest.raises(ModelError, match="NaN"):
        Gptq(4, 32).quantize(weight, Statistics(torch.full((96, 96), torch.nan), 1))


def test_fewer_tokens_than_columns_still_help() -> None:
    weight, statistics = layer(9, tokens=10)
    found = Gptq(3, 32).quantize(weight, statistics)
    assert found.loss < 0.3 * RoundToNearest(3, 32).quantize(weight, statistics).loss


def test_settings_are_checked() -> None:
    with pytest.raises(PlanError, match="damping"):
        build("gptq", {"bits": 4, "damping": 0.0})
    with pytest.raises(PlanError, match="clip"):
        build("gptq", {"bits": 4, "clip": "median"})
    with pytest.raises(PlanError, match="does not divide"):
        Gptq(4, 64).quantize(*layer(0))
