import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.evaluate import divergence
from gossamer.evaluate.divergence import example_means, kl_per_position


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(2, 40), st.floats(0.01, 30))
def test_kl_is_never_negative_and_zero_only_for_itself(seed, positions, classes, scale):
    torch.manual_seed(seed)
    p, q = (torch.randn(2, positions, classes) * scale).log_softmax(-1)
    gap = kl_per_position(p, q)
    assert gap.shape == (positions,)
    assert (gap >= 0).all()
    assert kl_per_position(p, p).max() < 1e-6
    assert torch.allclose(gap, torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1), atol=1e-4)


def test_impossible_classes_add_nothing():
    p = torch.tensor([[0.0, -math.inf]])
    q = torch.tensor([[0.5, 0.5]]).log()
    assert kl_per_position(p, q).item() == pytest.approx(math.log(2))
    assert kl_per_position(q, p).item() == math.inf


def test_chunks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    p, q = torch.randn(2, 50, 7).log_softmax(-1)
    whole = kl_per_position(p, q)
    monkeypatch.setattr(divergence, "CHUNK_NUMBERS", 20)
    assert torch.equal(kl_per_position(p, q), whole)
    with pytest.raises(ValueError, match="differ in shape"):
        kl_per_position(p, q[:3])


def test_examples_weigh_the_same_however_long():
    means = example_means(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 2]), 3)
    assert means[[0, 2]].tolist() == [2, 10]
    assert means[1].isnan()
