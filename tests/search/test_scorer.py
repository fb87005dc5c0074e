"""Scores equal those worked out by hand, and do not depend on how the examples are batched."""

import pytest
import torch
from tests.models.tiny import build

from gossamer.evaluate.divergence import kl_per_position
from gossamer.evaluate.text import TextTask, Window
from gossamer.search.scorer import Scorer


@pytest.fixture
def task():
    ids = torch.randint(3, 90, (5, 12), generator=torch.Generator().manual_seed(1)).tolist()
    return TextTask(tuple(Window(tuple(row), 11 - number) for number, row in enumerate(ids)), {"n": 5})


def run(model):
    def forward(inputs):
        with torch.no_grad():
            return model(**inputs)

    return forward


def test_scores_equal_the_sums_by_hand(task):
    model, other = build("llama", 0), build("llama", 1)
    scorer = Scorer(model, task, 2, run(model))
    score = scorer.score(lambda _, batch: run(other)(batch.inputs))
    assert score.weight.tolist() == [11, 10, 9, 8, 7]
    assert scorer.score(lambda _, batch: run(model)(batch.inputs)).mean_kl == pytest.approx(0, abs=1e-6)
    for number in range(5):
        batch = next(task.subset([number]).batches(1))
        p, q = (task.log_probs(run(m)(batch.inputs), batch) for m in (model, other))
        assert score.kl[number] == pytest.approx(kl_per_position(p, q).mean().item(), rel=1e-4)
        assert score.loss[number] == pytest.approx(task.losses(q, batch).mean().item(), rel=1e-4)


def test_a_share_scores_the_first_batches_only(task):
    model, other = build("llama", 0), build("llama", 1)
    scorer = Scorer(model, task, 2, run(model))
    whole, part = (scorer.score(lambda _, batch: run(other)(batch.inputs), share) for share in (1.0, 0.3))
    assert part.weight.tolist() == [11, 10, 0, 0, 0]
    assert part.kl[:2].tolist() == whole.kl[:2].tolist()
    assert part.mean_kl == pytest.approx((11 * whole.kl[0] + 10 * whole.kl[1]) / 21)


def test_batching_changes_nothing(task):
    model, other = build("llama", 0), build("llama", 1)
    scores = []
    for size in (1, 3, 5):
        scorer = Scorer(model, task, size, run(model))
        scores.append(scorer.score(lambda _, batch: run(other)(batch.inputs)).kl)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    assert scores[0] == pytest.approx(scores[2], rel=1e-4)
