import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from standins import ByteTokenizer, llama, opened

from gossamer.evaluate import divergence
from gossamer.evaluate.divergence import Reference, example_means, kl_per_position, mean_with_error
from gossamer.evaluate.tasks import open_task


@settings(max_examples=60, deadline=None)
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
    found = mean_with_error(means)
    assert (found.value, found.n) == (6, 2)
    assert found.high - found.value == pytest.approx(1.959964 * 4)
    assert mean_with_error(torch.tensor([2.0])).low == 2
    with pytest.raises(ValueError, match="no example"):
        mean_with_error(torch.tensor([math.nan]))


@pytest.fixture
def task(text_model, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Some sentences about nothing in particular, over and over. " * 6)
    return open_task("text", str(path), opened(text_model, tokenizer=ByteTokenizer()), context=24)


@pytest.fixture
def other():
    model = llama()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    return model


def test_a_reference_compares_candidates(task, text_model, other):
    reference = Reference.record(task, text_model, batch_size=4)
    assert reference.compare(text_model).max() < 1e-6
    gaps = reference.compare(other)
    assert gaps.shape == (len(task),)
    assert (gaps > 0).all()
    batch = next(task.subset([3]).batches(1))
    p, q = (task.log_probs(m(**batch.inputs), batch) for m in (text_model, other))
    assert gaps[3].item() == pytest.approx(kl_per_position(p, q).mean().item(), rel=1e-3)
    handed = reference.compare(lambda number, batch: other(**batch.inputs))
    assert torch.allclose(handed, gaps, rtol=1e-4)


def test_half_precision_and_fewer_positions_stay_close(task, text_model, other):
    full = Reference.record(task, text_model)
    half = Reference.record(task, text_model, half=True)
    assert half.bytes * 2 == full.bytes
    assert half.compare(other).mean().item() == pytest.approx(full.compare(other).mean().item(), rel=0.01)
    assert half.compare(text_model).max() < 1e-4
    small = Reference.record(task, text_model, batch_size=4, most_bytes=full.bytes // 3)
    assert small.bytes <= full.bytes // 3
    assert small.compare(text_model).max() < 1e-6
    assert not small.compare(other).isnan().any()
    assert small.compare(other).mean().item() == pytest.approx(full.compare(other).mean().item(), rel=0.5)
