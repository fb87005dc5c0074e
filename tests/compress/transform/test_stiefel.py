"""Descent over orthogonal matrices: they stay orthogonal, keep what they must keep, and come to where slopes lead."""

import pytest
import torch

from gossamer.compress.transform.orthogonal import orthogonal
from gossamer.compress.transform.stiefel import CayleyDescent


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("keeps_mean", [False, True])
@pytest.mark.parametrize("size", [1, 2, 12, 33])
def test_it_stays_orthogonal_whatever_the_slopes(size, keeps_mean):
    descent = CayleyDescent(orthogonal(size, "hadamard", seeded(0), keeps_mean), keeps_mean)
    start, draw = descent.matrix, seeded(1)
    for _ in range(100):
        descent.move(torch.randn(size, size, generator=draw) * 1e3, 0.3)
    one = torch.eye(size, dtype=torch.float64)
    assert float((descent.matrix @ descent.matrix.T - one).abs().max()) < 1e-10
    if keeps_mean:
        torch.testing.assert_close(descent.matrix.sum(1), torch.ones(size, dtype=torch.float64))
        torch.testing.assert_close(descent.matrix.sum(0), torch.ones(size, dtype=torch.float64))
    assert (size > 1 + keeps_mean) == (not torch.allclose(descent.matrix, start))


def test_a_step_turns_by_the_angle_whatever_the_size_of_the_slope():
    for factor in (1e-6, 1.0, 1e6):
        descent = CayleyDescent(torch.eye(2, dtype=torch.float64), keeps_mean=False)
        descent.move(factor * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), 0.01)
        expected = torch.tensor([[1.0, -0.01], [0.01, 1.0]]).double()
        torch.testing.assert_close(descent.matrix, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("keeps_mean", [False, True])
def test_it_finds_the_rotation_between_two_clouds(keeps_mean):
    """min ‖X Q - Y‖² over orthogonal Q, with Y = X T for a rotation T near the start."""
    points = torch.randn(64, 8, generator=seeded(2)).double()
    start = orthogonal(8, "random", seeded(3), keeps_mean)
    target = CayleyDescent(start, keeps_mean)
    target.move(torch.randn(8, 8, generator=seeded(4)), 0.5)
    found = CayleyDescent(start, keeps_mean)
    aim = points @ target.matrix
    for step in range(200):
        found.move(points.T @ (points @ found.matrix - aim), 0.05 * (1 - step / 200))
    torch.testing.assert_close(found.matrix, target.matrix, rtol=0, atol=0.02)
    assert not torch.allclose(start, target.matrix, rtol=0, atol=0.2)


def test_no_slope_moves_nothing():
    start = orthogonal(4, "random", seeded(0))
    descent = CayleyDescent(start, keeps_mean=False)
    descent.move(torch.zeros(4, 4), 0.1)
    assert torch.equal(descent.matrix, start)
