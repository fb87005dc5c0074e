import pytest
import torch

from gossamer.compress.factor import factorise
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import ModelError


def hessian_of(seed: int, columns: int, tokens: int) -> torch.Tensor:
    torch.manual_seed(seed)
    inputs = torch.randn(tokens, columns) @ torch.randn(columns, columns)
    return inputs.T @ inputs / tokens


@pytest.mark.parametrize("act_order", [False, True])
def test_factor_inverts_to_the_papers_factor(act_order: bool) -> None:
    hessian = hessian_of(0, 24, 200)
    factor = factorise(hessian, 0.01, act_order)
    assert factor is not None
    damped = (hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24))[factor.order][:, factor.order]
    root = factor.pull.T * factor.pivots
    torch.testing.assert_close(root @ root.T, damped, rtol=1e-4, atol=1e-3)
    paper = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
    torch.testing.assert_close(torch.linalg.inv(root.double()), paper, rtol=1e-3, atol=1e-4)
    if act_order:
        diagonal = hessian.diagonal()[factor.order]
        assert bool((diagonal[:-1] >= diagonal[1:]).all())
    else:
        assert factor.order.tolist() == list(range(24))
    torch.testing.assert_close(factor.costs.mean(), torch.tensor(1.0))


def test_costs_are_in_the_weights_own_order() -> None:
    hessian = torch.diag(torch.tensor([1.0, 9.0, 4.0]))
    factor = factorise(hessian, 1e-6, act_order=True)
    assert factor is not None
    torch.testing.assert_close(factor.costs, torch.tensor([3.0, 27.0, 12.0]) / 14, rtol=1e-4, atol=1e-4)


def test_dead_columns_are_counted_and_stand_alone() -> None:
    hessian = hessian_of(1, 8, 100)
    hessian[3] = 0
    hessian[:, 3] = 0
    factor = factorise(hessian, 0.01, False)
    assert factor is not None
    assert factor.dead == 1
    alone = torch.eye(8)[3]
    assert torch.equal(factor.pull[3], alone)
    assert torch.equal(factor.pull[:, 3], alone)


def test_damping_grows_until_the_matrix_is_positive_definite() -> None:
    hessian = torch.ones(6, 6)
    hessian.diagonal().fill_(0.8)
    factor = factorise(hessian, 0.01, False)
    assert factor is not None
    assert factor.damping == pytest.approx(1.0)
    assert (
        factorise(torch.ones(6, 6) - 3 * torch.ones(6, 6).triu(1) - 3 * torch.ones(6, 6).tril(-1), 0.01, False) is None
    )
    assert factorise(torch.zeros(4, 4), 0.01, False) is None


def test_a_rank_one_hessian_works_at_the_usual_damping() -> None:
    vector = torch.randn(16, 1)
    factor = factorise(vector @ vector.T, 0.01, True)
    assert factor is not None
    assert factor.damping == 0.01


def test_nan_is_refused_and_factors_are_shared() -> None:
    with pytest.raises(ModelError, match="NaN"):
        factorise(torch.full((3, 3), torch.nan), 0.01, False)
    statistics = Statistics(hessian_of(2, 8, 50), 50)
    assert statistics.factor(0.01, True) is statistics.factor(0.01, True)
    assert statistics.factor(0.01, False) is not statistics.factor(0.01, True)
