"""Buckets of classes: nothing is lost where there is nothing to join, and joining never adds divergence."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from gossamer.compress.distill.distributions import bucketed, divergence, likeliest, sharpened


def drawn(seed, classes, width=3.0):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(5, classes, generator=draw) * width).log_softmax(-1) for _ in range(2)]


def joined(p, q, top_k):
    classes = likeliest(p, top_k)
    return bucketed(p, classes), bucketed(q, classes)


@given(seed=st.integers(0, 99), classes=st.integers(2, 40), temperature=st.floats(1, 2))
def test_both_directions_are_those_of_torch_distributions_on_the_logits(seed, classes, temperature):
    p, q = drawn(seed, classes)
    soft_p, soft_q = sharpened(p, temperature), sharpened(q, temperature)
    dense_p, dense_q = Categorical(logits=p / temperature), Categorical(logits=q / temperature)
    assert torch.allclose(divergence(soft_p, soft_q), kl_divergence(dense_p, dense_q), atol=1e-5)
    assert torch.allclose(divergence(soft_q, soft_p), kl_divergence(dense_q, dense_p), atol=1e-5)


@given(seed=st.integers(0, 99), classes=st.integers(3, 40))
def test_a_bucket_of_one_class_loses_nothing_and_larger_ones_only_lower_the_divergence(seed, classes):
    p, q = drawn(seed, classes)
    whole = divergence(p, q)
    assert torch.allclose(divergence(*joined(p, q, classes)), whole, atol=1e-5)
    assert torch.allclose(divergence(*joined(p, q, classes - 1)), whole, atol=1e-5)
    last = whole
    for top_k in range(classes - 2, 0, -1):
        now = divergence(*joined(p, q, top_k))
        assert bool((now <= last + 1e-5).all())
        last = now


@given(seed=st.integers(0, 99), top_k=st.integers(1, 12))
def test_buckets_hold_all_probability_and_match_a_sum_written_out(seed, top_k):
    p, q = drawn(seed, 12)
    found_p, found_q = joined(p, q, top_k)
    assert torch.allclose(found_q.exp().sum(-1), torch.ones(5), atol=1e-5)
    for row in range(5):
        best = p[row].sort(descending=True).indices[:top_k].tolist()
        rest = [number for number in range(12) if number not in best]
        groups = [[number] for number in best] + ([rest] if rest else [])
        pairs = [(float(p[row, group].exp().sum()), float(q[row, group].exp().sum())) for group in groups]
        wanted = sum(a * (torch.tensor(a) / b).log() for a, b in pairs)
        assert torch.allclose(divergence(found_p, found_q)[row], wanted, atol=1e-4)


def test_gradients_are_those_of_the_dense_formulation():
    p, q = drawn(7, 20)
    logits = q.clone().requires_grad_(True)
    (wanted,) = torch.autograd.grad(kl_divergence(Categorical(logits=p), Categorical(logits=logits)).sum(), logits)
    for top_k in (None, 20, 19):
        student = logits.log_softmax(-1)
        (found,) = torch.autograd.grad(divergence(*joined(p, student, top_k)).sum(), logits)
        assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(wanted, q.exp() - p.exp(), atol=1e-5)


def test_classes_that_cannot_occur_leave_divergence_and_gradients_finite():
    p, q = drawn(3, 6)
    barred = torch.zeros(6).index_fill(0, torch.tensor([4, 5]), -torch.inf)
    logits = q.clone().requires_grad_(True)
    for top_k in (None, 4, 5):
        found = divergence(*joined((p + barred).log_softmax(-1), (logits + barred).log_softmax(-1), top_k))
        (slope,) = torch.autograd.grad(found.sum(), logits)
        assert torch.allclose(found, divergence(*(x[:, :4].log_softmax(-1) for x in (p, q))), atol=1e-5)
        assert bool(torch.isfinite(slope).all())
