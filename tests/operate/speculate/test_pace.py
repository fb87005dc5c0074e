"""The length of drafts follows what rounds cost and what drafts are worth; so does giving up, for a while."""

from collections.abc import Callable

import numpy as np
import pytest

from gossamer.operate.speculate.pace import LONGEST, Pace


def lengths(cost: Callable[[int], float], alpha: float, rounds: int = 200, noise: float = 0.0) -> list[int]:
    """What is chosen where a round of some length costs so many seconds and drafted tokens are worth `alpha`."""
    pace, generator, chosen = Pace(), np.random.default_rng(0), []
    for _ in range(rounds):
        length = pace.length()
        accepted = next((at for at in range(length) if generator.random() >= alpha), length)
        pace.record(length, accepted, cost(length) * (1 + noise * generator.random()))
        chosen.append(length)
    return chosen


def best(cost: Callable[[int], float], alpha: float) -> int:
    return max(range(LONGEST + 1), key=lambda length: sum(alpha**at for at in range(length + 1)) / cost(length))


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize(("draft", "verify"), [(0.1, 0.02), (0.02, 0.1), (0.2, 0.2), (0.0, 0.01)])
def test_it_settles_near_the_best_length(alpha: float, draft: float, verify: float) -> None:
    def cost(length: int) -> float:
        return 1 + length * (draft + verify)

    def speed(length: int) -> float:
        return sum(alpha**at for at in range(length + 1)) / cost(length)

    chosen = lengths(cost, alpha, noise=0.1)[20:]
    assert np.mean([speed(length) for length in chosen]) > 0.85 * speed(best(cost, alpha))


def test_costs_that_jump_are_found_out() -> None:
    chosen = lengths(lambda length: 1 + 0.02 * length + (3 if length > 6 else 0), alpha=0.9)
    assert np.median(chosen[60:]) in (4, 5, 6)


def test_plain_decoding_where_drafts_do_not_pay_with_ever_rarer_trials() -> None:
    chosen = np.array(lengths(lambda length: 1 + 0.6 * length, alpha=0.4, rounds=600))
    assert (chosen[10:26] == 0).all()
    trials = np.flatnonzero(chosen[10:]) + 10
    assert 3 <= len(trials) <= 25
    gaps = np.diff(trials)
    assert sorted(set(gaps[gaps > 1].tolist())) == [33, 65, 129, 257][: len(set(gaps[gaps > 1].tolist()))]


def test_it_says_why_it_is_off_and_comes_back() -> None:
    pace = Pace()
    for _ in range(30):
        length = pace.length()
        pace.record(length, 0, 0.01 * (1 + 0.2 * length))
    assert pace.why_off.startswith("plain decoding is faster: 100 tokens a second, with 1 drafted ones")
    for _ in range(200):  # now the text repeats itself
        length = pace.length()
        pace.record(length, length, 0.01 * (1 + 0.2 * length))
    assert pace.why_off == ""
    assert length > 8


def test_plain_decoding_is_timed_again_now_and_then() -> None:
    chosen = np.array(lengths(lambda length: 1 + 0.1 * length, alpha=0.9))
    assert 4 <= (chosen[10:] == 0).sum() <= 8
    assert np.median(chosen[10:]) > 5


def test_nothing_drafted_is_no_trial() -> None:
    pace = Pace()
    for _ in range(20):
        pace.length()
        pace.record(0, 0, 0.01)
    assert pace.acceptance == 0.5
    assert pace.length() > 0
    assert pace.why_off == ""
