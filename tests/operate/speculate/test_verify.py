"""Verification is exact, by enumeration of all drafts and over several tokens, and near the best that there is."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import chisquare

from gossamer.operate.speculate.verify import RULES, walk


def laws(seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """p, q and a number of drafts, from smooth to nearly one-hot, some tokens impossible."""
    generator = np.random.default_rng(seed)
    size, count = int(generator.integers(2, 7)), int(generator.integers(1, 5))
    found = []
    for _ in range(2):
        law = generator.dirichlet(np.full(size, generator.choice([0.1, 1.0, 5.0])))
        law[generator.random(size) < 0.2] = 0
        law = law + (law.sum() == 0)
        found.append(torch.tensor(law / law.sum(), dtype=torch.float64))
    return found[0], found[1], count


def outcome(rule, p: torch.Tensor, q: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """The law of what comes out, and the probability that it is a draft, by enumeration of all drafts."""
    law, accepted = torch.zeros_like(p), 0.0
    for drafts in itertools.product(range(len(q)), repeat=count):
        chance = float(q[list(drafts)].prod())
        if chance == 0:
            continue
        verdict = rule.judge(p, q, drafts)
        assert (verdict.residual >= 0).all()
        assert float(verdict.residual.sum()) == pytest.approx(1)
        for draft, take in zip(drafts, verdict.take.tolist(), strict=True):
            law[draft] += chance * take
            accepted += chance * take
            chance *= 1 - take
        law += chance * verdict.residual
    return law, accepted


def best(p: torch.Tensor, q: torch.Tensor, count: int) -> float:
    """The largest probability that a token of law p is one of the drafts: optimal transport as a linear program."""
    drafts = list(itertools.product(range(len(q)), repeat=count))
    size, number = len(p), len(drafts)
    worth = np.array([[token in each for token in range(size)] for each in drafts], dtype=float)
    of_draft = np.kron(np.eye(number), np.ones((1, size)))
    of_token = np.kron(np.ones((1, number)), np.eye(size))
    chances = np.array([float(q[list(each)].prod()) for each in drafts])
    found = linprog(-worth.ravel(), np.vstack([of_draft, of_token]), np.concatenate([chances, p.numpy()]))
    assert found.success
    return float(-found.fun)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(40))
def test_what_comes_out_follows_p_exactly(name: str, seed: int) -> None:
    p, q, count = laws(seed)
    law, accepted = outcome(RULES[name], p, q, count)
    torch.testing.assert_close(law, p, rtol=0, atol=1e-12)
    assert RULES[name].acceptance(p, q, count) == pytest.approx(accepted, abs=1e-12)


def test_kseq_is_near_the_best_and_never_below_recursive_rejection() -> None:
    gaps = []
    for seed in range(60):
        p, q, count = laws(seed)
        if len(q) ** count > 300:
            continue
        kseq, recursive = (RULES[name].acceptance(p, q, count) for name in ("kseq", "recursive"))
        bound = best(p, q, count)
        assert kseq <= bound + 1e-9
        assert kseq >= (1 - (1 - 1 / count) ** count) * bound - 1e-9
        assert kseq >= recursive - 1e-9
        gaps.append((kseq - recursive, bound - kseq, count))
    assert len(gaps) > 30
    assert max(gap for gap, _, _ in gaps) > 0.01
    assert max(gap for _, gap, _ in gaps) > 0.01
    assert all(max(abs(gap), abs(rest)) < 1e-9 for gap, rest, count in gaps if count == 1)


@pytest.mark.parametrize("name", RULES)
def test_the_ends_of_what_is_possible(name: str) -> None:
    rule = RULES[name]
    one, other, even = (torch.tensor(law, dtype=torch.float64) for law in ([1, 0, 0], [0, 0, 1], [1 / 3] * 3))
    for count in (1, 3):
        assert rule.acceptance(even, even, count) == pytest.approx(1)
        assert rule.acceptance(one, other, count) == 0
        assert rule.judge(one, other, [2] * count).residual.tolist() == [1, 0, 0]
    verdict = rule.judge(even, one, [0])  # a draft that was certain: kept by its probability, else never again
    assert float(verdict.take) == pytest.approx(1 / 3)
    assert verdict.residual.tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 3])
def test_two_tokens_and_what_follows_them_have_the_law_of_the_target(name: str, count: int) -> None:
    generator = torch.Generator().manual_seed(7)
    size, length, runs = 3, 2, 2000

    def tree(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, size, generator=generator, dtype=torch.float64).softmax(-1)

    p, q = [tree(), tree(size), tree(size, size)], [tree(), tree(size)]
    counts = np.zeros((size,) * 3)
    for _ in range(runs):
        drafts = torch.empty(count, length, dtype=torch.long)
        for row in drafts:
            row[0] = torch.multinomial(q[0], 1, generator=generator)
            row[1] = torch.multinomial(q[1][row[0]], 1, generator=generator)
        found = walk(
            torch.stack([torch.stack([p[0], p[1][row[0]], p[2][row[0], row[1]]]) for row in drafts]),
            torch.stack([torch.stack([q[0], q[1][row[0]]]) for row in drafts]),
            drafts,
            RULES[name],
            lambda: torch.rand((), generator=generator, dtype=torch.float64),
        )
        assert found.bonus == (len(found.tokens) == 3)
        assert found.tokens[:-1] == drafts[found.row, : len(found.tokens) - 1].tolist()
        tokens = list(found.tokens)
        while len(tokens) < 3:  # what a rejection cut off is written plainly
            tokens.append(int(torch.multinomial(p[len(tokens)][tuple(tokens)], 1, generator=generator)))
        counts[tuple(tokens)] += 1
    expected = runs * (p[0][:, None, None] * p[1][:, :, None] * p[2]).numpy()
    assert chisquare(counts.ravel(), expected.ravel()).pvalue > 0.001
