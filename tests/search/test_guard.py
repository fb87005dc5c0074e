"""The guard returns the uniform plan where the searched one loses to it, and says so."""

import numpy as np

from gossamer.compress.apply import Applied
from gossamer.models.hierarchy import Hierarchy
from gossamer.search.guard import Contender, judge
from gossamer.search.scorer import Score


def contender(label, kl):
    values = np.array(kl, dtype=float)
    applied = Applied(Hierarchy("none", False, ()), {}, [])
    return Contender(label, 100, {}, applied, Score(values, values, np.ones_like(values)))


def test_the_better_one_wins_and_the_sentence_names_both():
    searched, uniform = contender("the searched plan", [0.1, 0.3]), contender("uniform 3 bits g64", [0.2, 0.4])
    kept = judge(searched, [uniform])
    assert kept.winner is searched
    assert kept.uniform is uniform
    assert "uniform 3 bits g64" in kept.text
    assert "0.2 against 0.3" in kept.text
    lost = judge(contender("the searched plan", [0.5, 0.5]), [uniform, contender("uniform 2 bits g64", [0.9, 0.9])])
    assert lost.winner is uniform
    assert "instead of the searched plan" in lost.text


def test_without_a_uniform_plan_that_fits_the_searched_one_stands():
    searched = contender("the searched plan", [0.1])
    assert judge(searched, []).winner is searched
    assert judge(searched, []).uniform is None


def test_scores_weigh_examples_by_their_positions():
    score = Score(np.array([1.0, 4.0]), np.array([2.0, 2.0]), np.array([3.0, 1.0]))
    assert score.mean_kl == 1.75
    assert score.mean_loss == 2.0
    assert score.kl_stderr > 0
