import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.compress.transform.orthogonal import hadamard, orthogonal


def drawn(size, kind="hadamard", seed=0, keeps_mean=False):
    return orthogonal(size, kind, torch.Generator().manual_seed(seed), keeps_mean)


@pytest.mark.parametrize("size", [1, 2, 12, 16, 20, 24, 28, 36, 44, 56, 60, 96, 192, 448, 576, 768, 896])
def test_hadamard_matrices(size):
    found = hadamard(size)
    assert found is not None
    assert bool((found.abs() == 1).all())
    assert torch.equal(found @ found.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 6, 18, 22, 34, 50, 92])
def test_sizes_that_no_construction_here_gives(size):
    assert hadamard(size) is None


@settings(max_examples=40)
@given(st.integers(1, 80), st.sampled_from(["hadamard", "random"]), st.integers(0, 5), st.booleans())
def test_every_size_is_orthogonal_and_keeps_the_mean_if_asked(size, kind, seed, keeps_mean):
    found = drawn(size, kind, seed, keeps_mean)
    torch.testing.assert_close(found @ found.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    if keeps_mean:
        ones = torch.ones(size, dtype=torch.float64)
        torch.testing.assert_close(ones @ found, ones, rtol=0, atol=1e-12)
    assert torch.equal(found, drawn(size, kind, seed, keeps_mean))


@pytest.mark.parametrize("keeps_mean", [False, True])
def test_a_single_channel_is_spread_over_all(keeps_mean):
    """An even spread has its largest entry at 1/√n; five times that is far from a channel kept to itself, √n times."""
    found = drawn(768, keeps_mean=keeps_mean)
    assert float(found.abs().max()) < 6 / 768**0.5
    if not keeps_mean:
        torch.testing.assert_close(found.abs(), torch.full_like(found, 768**-0.5))


def test_seeds_differ_and_odd_sizes_turn_in_blocks():
    assert not torch.equal(drawn(24, seed=0), drawn(24, seed=1))
    found = drawn(18)
    assert int((found != 0).sum()) == 9 * 4, "blocks of 2, the largest power of two that divides 18"
