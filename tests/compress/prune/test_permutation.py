from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compress.prune.cases import layer

from gossamer.compress.prune import Wanda
from gossamer.compress.prune.permutation import find_permutation, retained
from gossamer.core.errors import PlanError


@settings(max_examples=40)
@given(
    st.sampled_from([(1, 2), (2, 4), (4, 8), (1, 4), (3, 5)]), st.integers(1, 6), st.integers(1, 8), st.integers(0, 99)
)
def test_it_is_an_order_that_keeps_what_it_says_and_no_less_than_before(pattern, groups, rows, seed):
    kept, width = pattern
    scores = torch.rand(rows, groups * width, generator=torch.Generator().manual_seed(seed)).square()
    found = find_permutation(scores, kept, width)
    assert sorted(found.order.tolist()) == list(range(groups * width))
    mask = Wanda(None, f"{kept}:{width}").sparsify(scores[:, found.order], None).mask
    share = float((scores[:, found.order] * mask).sum() / scores.sum())
    assert found.after == pytest.approx(share, rel=1e-5)
    assert found.before == pytest.approx(retained(scores, kept, width))
    assert found.after >= found.before


def test_it_comes_close_to_the_best_of_all_orders():
    for seed in range(5):
        scores = torch.rand(5, 6, generator=torch.Generator().manual_seed(seed)).square()
        best = max(retained(scores[:, list(order)], 1, 2) for order in permutations(range(6)))
        found = find_permutation(scores, 1, 2)
        assert found.after > found.before
        assert found.after > 0.97 * best


def test_columns_that_compete_are_parted():
    scores = torch.tensor([[9.0, 8, 7, 6, 1, 1, 1, 1]])
    found = find_permutation(scores, 2, 4)
    assert found.before == pytest.approx((17 + 2) / 34)
    assert found.after == pytest.approx(30 / 34)


def test_two_of_four_loses_less_in_the_order_found():
    for seed in range(4):
        weight, statistics = layer(seed, 16, 96)
        scores = weight.abs() * statistics.hessian.diagonal().sqrt()
        order = find_permutation(scores, 2, 4).order
        stored = Wanda(pattern="2:4").sparsify(weight, statistics)
        mask = torch.empty_like(stored.mask)
        mask[:, order] = Wanda(pattern="2:4").keep(scores[:, order])
        assert statistics.loss(weight * ~mask) < statistics.loss(weight * ~stored.mask)


def test_a_pattern_that_does_not_fit_is_refused():
    for kept, width in ((2, 5), (4, 4), (0, 4)):
        with pytest.raises(PlanError, match="does not fit 12 columns"):
            find_permutation(torch.ones(2, 12), kept, width)
    assert find_permutation(torch.zeros(2, 12), 2, 4).after == 1.0
