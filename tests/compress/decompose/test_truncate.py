import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import inputs, layer, output_loss, statistics_of
from torch import Tensor

from gossamer.compress.decompose.truncate import remarks, truncate
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import ModelError, PlanError

shapes = st.sampled_from([(12, 48), (48, 12), (20, 20), (1, 9), (9, 1)])


def best_loss(weight: Tensor, hessian: Tensor, rank: int) -> tuple[float, Tensor]:
    """Eckart and Young by a dense float64 square root of the Hessian: the least loss of a rank, and the matrix."""
    values, vectors = torch.linalg.eigh(hessian)
    root = (vectors * values.sqrt()) @ vectors.T
    left, singular, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    matrix = (left[:, :rank] * singular[:rank]) @ right[:rank] @ torch.linalg.inv(root)
    return float(singular[rank:].square().sum()), matrix


@settings(max_examples=30)
@given(shapes, st.integers(0, 99), st.data())
def test_it_is_the_best_of_its_rank_under_the_damped_hessian(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, min(shape)))
    weight, statistics = layer(seed, *shape)
    damped = statistics.hessian.double()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    least, matrix = best_loss(weight, damped, rank)
    found = truncate(weight, rank, statistics, 0.01)
    error = weight.double() - found.dense().double()
    whole = float((weight.double() @ damped * weight.double()).sum())
    loss = float((error @ damped * error).sum())
    assert least * 0.9999 <= loss <= least * 1.0001 + 1e-5 * whole
    gap = found.dense().double() - matrix
    assert float((gap @ damped * gap).sum()) <= 1e-5 * whole


@settings(max_examples=20)
@given(shapes, st.integers(0, 99))
def test_the_loss_falls_with_the_rank_until_the_weight_is_back(shape: tuple[int, int], seed: int) -> None:
    weight, statistics = layer(seed, *shape)
    seen = inputs(seed, shape[1])
    losses = [
        output_loss(weight - truncate(weight, rank, statistics, 0.01).dense(), weight, seen)
        for rank in range(1, min(shape) + 1)
    ]
    assert all(later <= earlier + 1e-6 for earlier, later in zip([1.0, *losses], losses, strict=False))
    assert losses[-1] < 1e-6
    whole = truncate(weight, min(shape), statistics, 0.01).dense()
    assert float((weight - whole).abs().max()) < 4e-3 * float(weight.abs().max())


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(1, 12))
def test_it_lowers_the_error_on_inputs_that_calibration_did_not_see(seed: int, rank: int) -> None:
    weight, statistics = layer(seed)
    unseen = inputs(seed + 500, weight.shape[1])
    assert output_loss(weight - truncate(weight, rank, statistics, 0.01).dense(), weight, unseen) < 1


@pytest.mark.parametrize(("decay", "limit"), [(0.0, 1.003), (0.5, 1.0001), (1.0, 1.0003)])
def test_the_randomised_svd_of_large_matrices_is_close_to_the_exact_one(decay: float, limit: float) -> None:
    """Singular values that do not fall at all, as those of quantisation errors, are the hardest case."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(600, 640, generator=draw)
    left, _, right = torch.linalg.svd(noise, full_matrices=False)
    weight = noise if decay == 0 else (left * torch.arange(1, 601) ** -decay) @ right
    state = torch.random.get_rng_state()
    found = truncate(weight, 16, None, 0.01)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(truncate(weight, 16, None, 0.01).left, found.left)
    least = float(torch.linalg.svdvals(weight.double())[16:].square().sum())
    assert float((weight - found.dense()).double().square().sum()) <= limit * least


@pytest.mark.parametrize("size", [1e-6, 1.0, 6e4])
@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_factors_fit_16_bits_whatever_the_scales(size: float, shape: tuple[int, int]) -> None:
    weight, _ = layer(1, *shape)
    strength = torch.logspace(-4, 4, shape[1])
    seen = inputs(1, shape[1]) * strength
    weight = weight * size / float(weight.abs().max())
    found = truncate(weight, 16, statistics_of(seen), 0.01)
    for factor in (found.left, found.right):
        assert factor.abs().max() < 1000
    assert torch.allclose(found.left.abs().amax(0), found.right.abs().amax(1), rtol=2e-3)
    assert float((weight - found.dense()).norm() / weight.norm()) < 2e-3
    assert output_loss(weight - found.dense(), weight, seen) < 1e-5


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(0, 40))
def test_singular_hessians_work_and_are_told(seed: int, tokens: int, dead: int) -> None:
    weight, _ = layer(seed)
    seen = inputs(seed, 48, tokens)
    seen[:, :dead] = 0
    statistics = statistics_of(seen)
    found = truncate(weight, 6, statistics, 0.01)
    assert output_loss(weight - found.dense(), weight, seen) < 1
    told = list(remarks(statistics, 0.01))
    assert any(f"{dead} input columns" in remark for remark in told) == (dead > 0)


def test_without_inputs_it_is_the_plain_svd_and_that_is_told() -> None:
    weight, _ = layer(2)
    left, singular, right = torch.linalg.svd(weight.double(), full_matrices=False)
    plain = (left[:, :5] * singular[:5]) @ right[:5]
    silent = Statistics(torch.zeros(48, 48), 1)
    for statistics, reason in ((None, "no calibration statistics"), (silent, "the calibration inputs are all zero")):
        found = truncate(weight, 5, statistics, 0.01)
        assert float((found.dense() - plain).abs().max()) < 5e-3
        assert list(remarks(statistics, 0.01)) == [f"decomposed by the plain SVD: {reason}"]


def test_a_zero_matrix_gives_a_zero_matrix() -> None:
    assert not truncate(torch.zeros(6, 8), 3, layer(0, 6, 8)[1], 0.01).dense().any()


def test_ranks_beyond_the_smaller_side_are_refused() -> None:
    with pytest.raises(PlanError, match=r"^rank 13 is too large for a matrix of 12 x 48: at most 12 is accepted$"):
        truncate(layer(0)[0], 13, None, 0.01)


def test_hessians_with_nan_are_refused() -> None:
    with pytest.raises(ModelError, match="Hessian"):
        truncate(layer(0)[0], 2, Statistics(torch.full((48, 48), torch.nan), 1), 0.01)
