"""GPTAQ passes on, column by column, what earlier layers did to the inputs, as its paper's update does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.compress.quantize import Gptaq, Gptq, RoundToNearest
from gossamer.compress.quantize.gptaq import asymmetric
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import PlanError
from gossamer.core.technique import build


def problem(seed=0, rows=12, columns=48, tokens=600, noise=0.4):
    """A weight, the unchanged inputs u and the disturbed ones x, (tokens, columns), and their statistics."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=draw) * torch.rand(columns, generator=draw).square() * 2
    unchanged = torch.randn(tokens, columns, generator=draw) @ mixing
    disturbed = unchanged + noise * torch.randn(tokens, columns, generator=draw) @ mixing.roll(1, 0)
    hessian, drift = disturbed.T @ disturbed / tokens, (unchanged - disturbed).T @ disturbed / tokens
    return torch.randn(rows, columns, generator=draw), unchanged, disturbed, Statistics(hessian, tokens, drift)


def by_the_paper(weight, statistics, technique, scales, zeros, mask=None):
    """The paper's algorithm, one column after another: both error terms are pushed on through the inverse."""
    columns, scheme = weight.shape[1], technique.scheme
    hessian, drift = statistics.hessian.double(), technique.alpha * statistics.drift.double()
    order = hessian.diagonal().argsort(descending=True, stable=True) if technique.act_order else torch.arange(columns)
    damped = (hessian + technique.damping * hessian.diagonal().mean() * torch.eye(columns))[order][:, order]
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    extra = (drift[order][:, order] @ upper.T).triu(1) @ upper
    work, codes = weight[:, order].double(), torch.empty(weight.shape)
    for position, column in enumerate(order.tolist()):
        group = column // (columns // scales.shape[1])
        scale, zero = scales[:, group].double(), 0 if zeros is None else zeros[:, group].double()
        value = work[:, position].clone()
        code = ((value / scale).round() + zero).clamp(scheme.low, scheme.high)
        if mask is not None:
            code = torch.where(mask[:, column], code, torch.as_tensor(zero, dtype=torch.double))
        error = (value - scale * (code - zero)) / upper[position, position]
        work[:, position:] += value.outer(extra[position, position:]) - error.outer(upper[position, position:])
        codes[:, column] = code.float()
    return codes.to(torch.int8)


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(2, 4), st.booleans(), st.booleans(), st.sampled_from([0.25, 1.0]), st.booleans())
def test_codes_are_those_of_the_papers_update(seed, bits, symmetric, act_order, alpha, pruned):
    weight, _, _, statistics = problem(seed)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) > 0.5 if pruned else None
    weight = weight if mask is None else weight * mask
    technique = Gptaq(bits, 16, symmetric, act_order, alpha=alpha)
    tensor = technique.quantize(weight, statistics, mask).tensor
    expected = by_the_paper(weight, statistics, technique, tensor.scales, tensor.zeros, mask)
    assert float((tensor.codes != expected).float().mean()) < 0.03  # a value half-way may fall either way
    assert mask is None or not bool(tensor.dequantize()[~mask].any())


def test_without_a_difference_it_is_gptq():
    weight, _, _, statistics = problem()
    same = Statistics(statistics.hessian, 600, torch.zeros(48, 48))
    for found in (same, Statistics(statistics.hessian, 600)):
        one, two = Gptaq(3, 16).quantize(weight, found), Gptq(3, 16).quantize(weight, found)
        assert torch.equal(one.tensor.codes, two.tensor.codes)
        assert one.loss == pytest.approx(two.loss)
    factor = statistics.factor(0.01, True)
    centre, moved = asymmetric(weight, factor, torch.zeros(48, 48))
    assert torch.allclose(centre, weight, atol=1e-5)
    assert torch.allclose(moved.pull.tril(-1), factor.pull.tril(-1), atol=1e-5)


@pytest.mark.parametrize("bits", [3, 4])
def test_outputs_are_closer_to_the_unchanged_layers_than_gptqs(bits):
    weight, unchanged, disturbed, statistics = problem(bits)
    before = statistics.hessian.clone(), statistics.drift.clone()
    errors = {}
    for technique in (Gptq(bits, 16), Gptaq(bits, 16, alpha=0.5), Gptaq(bits, 16, alpha=1.0)):
        found = technique.quantize(weight, statistics).tensor.dequantize()
        errors[technique] = float((disturbed @ found.T - unchanged @ weight.T).square().mean())
    gptq, half, full = errors.values()
    assert gptq > half > full
    assert torch.equal(before[0], statistics.hessian)
    assert torch.equal(before[1], statistics.drift)


def test_the_loss_is_that_of_the_original_weight():
    weight, _, disturbed, statistics = problem()
    found = Gptaq(4, 16).quantize(weight, statistics)
    error, whole = (disturbed @ part.T for part in (found.tensor.dequantize() - weight, weight))
    assert found.loss == pytest.approx(float(error.square().sum() / whole.square().sum()), rel=1e-3)


def test_missing_statistics_and_bad_settings():
    weight, *_ = problem()
    found = Gptaq(4, 16).quantize(weight, None)
    assert found.notes == ("rounded to nearest: no calibration statistics",)
    assert torch.equal(found.tensor.codes, RoundToNearest(4, 16).quantize(weight, None).tensor.codes)
    assert Gptaq(4).needs == "both models"
    for alpha in (0.0, 1.5):
        with pytest.raises(PlanError, match="alpha"):
            build("gptaq", {"bits": 4, "alpha": alpha})
