"""Masks of the techniques that only score, against their papers' formulas written out in NumPy."""

import numpy as np
import pytest
import torch
from tests.compress.prune.cases import layer, naive_mask

from gossamer.compress.prune import Magnitude, Ria, Wanda
from gossamer.compress.statistics import Statistics

settings = pytest.mark.parametrize(
    ("sparsity", "pattern", "removed", "width"), [(0.3, None, 29, None), (None, "2:4", 2, 4), (None, "1:6", 5, 6)]
)


@settings
def test_magnitude(sparsity, pattern, removed, width):
    weight, _ = layer(0)
    found = Magnitude(sparsity, pattern).sparsify(weight, None)
    size = np.abs(weight.numpy())
    if pattern is None:
        expected = naive_mask(size.reshape(1, -1), round(0.3 * 12 * 96)).reshape(12, 96)
    else:
        expected = naive_mask(size, removed, width)
    assert np.array_equal(found.mask.numpy(), expected)
    assert np.array_equal(found.weight.numpy(), weight.numpy() * expected)


@settings
def test_wanda(sparsity, pattern, removed, width):
    weight, statistics = layer(1)
    found = Wanda(sparsity, pattern).sparsify(weight, statistics)
    norms = np.sqrt(statistics.tokens * np.diag(statistics.hessian.numpy()).astype(np.float64))
    expected = naive_mask(np.abs(weight.numpy()) * norms, removed, width)
    assert np.array_equal(found.mask.numpy(), expected)
    assert np.array_equal(found.weight.numpy(), weight.numpy() * expected)


@settings
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_ria(sparsity, pattern, removed, width, exponent):
    weight, statistics = layer(2)
    found = Ria(sparsity, pattern, exponent).sparsify(weight, statistics)
    norms = np.sqrt(statistics.tokens * np.diag(statistics.hessian.numpy()).astype(np.float64))
    size = np.abs(weight.numpy()).astype(np.float64)
    scores = np.empty_like(size)
    for i in range(12):
        for j in range(96):
            scores[i, j] = (size[i, j] / size[:, j].sum() + size[i, j] / size[i].sum()) * norms[j] ** exponent
    assert np.array_equal(found.mask.numpy(), naive_mask(scores, removed, width))


def test_ria_bears_empty_rows_and_columns():
    weight, statistics = layer(3)
    weight[2], weight[:, 5] = 0, 0
    assert not Ria(0.5).sparsify(weight, statistics).mask[[0, 1, *range(3, 12)], 5].any()


def test_wanda_is_magnitude_within_rows_for_even_inputs():
    weight, _ = layer(4)
    found = Wanda(0.5).sparsify(weight, Statistics(torch.eye(96), 1))
    assert np.array_equal(found.mask.numpy(), naive_mask(np.abs(weight.numpy()), 48))
