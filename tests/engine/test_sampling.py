"""Sampling against straightforward definitions, and the law of its draws."""

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from gossamer.core.errors import SettingError
from gossamer.engine.sampling import Sampler, Sampling, draw, law, penalised

LOGITS = st.lists(st.floats(-8, 8, width=32).map(lambda x: round(x, 2)), min_size=1, max_size=12)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.41, 0.77, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.21, 1.0]),
)


def plainly(logits: list[float], sampling: Sampling) -> np.ndarray:
    """The law by its definitions, over a dictionary of the tokens that are left."""
    left = {token: math.exp((x - max(logits)) / sampling.temperature) for token, x in enumerate(logits)}
    if sampling.top_k:
        last = sorted(left.values(), reverse=True)[: sampling.top_k][-1]
        left = {token: weight for token, weight in left.items() if weight >= last}
    total, mass, kept = sum(left.values()), 0.0, []
    for token in sorted(left, key=lambda token: -left[token]):
        if kept and mass >= sampling.top_p * total:
            break
        kept.append(token)
        mass += left[token]
    left = {token: left[token] for token in kept}
    left = {token: weight for token, weight in left.items() if weight >= sampling.min_p * max(left.values())}
    found = np.zeros(len(logits))
    for token, weight in left.items():
        found[token] = weight / sum(left.values())
    return found


@settings(max_examples=300)
@given(LOGITS, SAMPLINGS)
def test_the_law_is_its_definition(logits: list[float], sampling: Sampling) -> None:
    found = law(torch.tensor(logits, dtype=torch.float64), sampling).numpy()
    np.testing.assert_allclose(found, plainly(logits, sampling), atol=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.floats(0.01, 0.999), st.sampled_from([0.1, 1.0, 20.0]), st.booleans())
def test_the_law_of_long_vocabularies_is_its_definition(seed: int, p: float, heat: float, ties: bool) -> None:
    """Whether few tokens hold the probability or nearly all, and where many are equally likely."""
    logits = 4 * torch.randn(2, 1500, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if ties else logits
    sampling = Sampling(heat, top_p=p)
    found = law(logits, sampling).numpy()
    for row, each in zip(logits, found, strict=True):
        np.testing.assert_allclose(each, plainly(row.tolist(), sampling), atol=1e-9)


@settings(max_examples=100)
@given(st.integers(0, 2**31), SAMPLINGS)
def test_the_law_is_that_of_transformers_row_by_row(seed: int, sampling: Sampling) -> None:
    logits = 3 * torch.randn(4, 17, generator=torch.Generator().manual_seed(seed))
    scores = transformers.TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = transformers.TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = transformers.TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p:
        scores = transformers.MinPLogitsWarper(sampling.min_p)(None, scores)
    found = law(logits, sampling)
    torch.testing.assert_close(found.float(), scores.softmax(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, torch.stack([law(row, sampling) for row in logits]))


@settings(max_examples=100)
@given(LOGITS, st.integers(0, 10**6), st.floats(0.5, 2), st.floats(-2, 2), st.floats(-2, 2))
def test_penalties_are_their_definitions(logits, seed, repetition, presence, frequency) -> None:
    chooser = np.random.default_rng(seed)
    prompt, answer = (chooser.integers(len(logits), size=3).tolist() for _ in range(2))
    sampling = Sampling(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    seen = torch.tensor([token in prompt + answer for token in range(len(logits))])
    counts = torch.tensor([answer.count(token) for token in range(len(logits))])
    found = penalised(torch.tensor(logits, dtype=torch.float64), seen, counts, sampling).tolist()
    for token, logit in enumerate(logits):
        want = logit
        if token in prompt + answer:
            want = logit / repetition if logit > 0 else logit * repetition
        want -= frequency * answer.count(token) + (presence if token in answer else 0)
        assert found[token] == pytest.approx(want)


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [5.0, -1.0, 2.0]])
    assert law(logits, Sampling()).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert Sampler(Sampling()).choose(logits[0]) == 1


def test_the_smallest_temperature_is_greedy() -> None:
    assert law(torch.tensor([1.0, 1.5, -2.0]), Sampling(temperature=1e-12)).tolist() == [0, 1, 0]


@settings(max_examples=200)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 3.0]), min_size=1, max_size=8).filter(any), st.data())
def test_a_draw_is_where_the_cumulated_law_passes_its_number(weights, data) -> None:
    number = data.draw(st.one_of(st.sampled_from([0.0, 1 - 2**-53]), st.floats(0, 1, exclude_max=True)))
    probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    token = int(draw(probabilities, torch.tensor(number, dtype=torch.float64)))
    assert weights[token] > 0
    assert sum(weights[:token]) <= number * sum(weights) + 1e-9
    assert sum(weights[: token + 1]) >= number * sum(weights) - 1e-9


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7, seed=5), Sampling(temperature=1.3, top_k=4, seed=6)])
def test_draws_follow_the_law(sampling: Sampling) -> None:
    logits = torch.tensor([0.3, 1.2, -0.5, 2.0, 0.0, -1.0])
    probabilities = law(logits, sampling).numpy()
    sampler = Sampler(sampling)
    counts = np.bincount([sampler.choose(logits) for _ in range(3000)], minlength=6)
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], 3000 * probabilities[possible]).pvalue > 0.001
    wrong = law(logits, Sampling(temperature=sampling.temperature * 1.2, top_k=sampling.top_k)).numpy()
    assert chisquare(counts[possible], 3000 * wrong[possible]).pvalue < 0.001  # the test can tell


def test_a_sampler_remembers_what_it_wrote_and_was_asked() -> None:
    logits = torch.tensor([1.0, 0.9, 0.8, 0.7])
    once = Sampler(Sampling(presence_penalty=2))
    for expected in (0, 1, 2, 3, 0):
        assert once.choose(logits) == expected
        once.note(expected)
    assert Sampler(Sampling(repetition_penalty=2), prompt=[0, 1, 99]).choose(logits) == 2


def test_laws_ahead_are_those_of_a_sampler_that_wrote_so_far() -> None:
    sampling = Sampling(0.8, top_k=5, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2)
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    ahead = torch.tensor([[3, 3, 5], [0, 6, 0]])
    sampler = Sampler(sampling, prompt=[1, 2])
    sampler.note(4)
    found = sampler.law(logits, ahead)
    assert torch.equal(sampler.law(logits[:, 3:], ahead), found[:, 3:])
    for row in range(2):
        alone = Sampler(sampling, prompt=[1, 2])
        for at, token in enumerate([4, *ahead[row].tolist()]):
            alone.note(token)
            assert torch.equal(alone.law(logits[row, at][None])[0], found[row, at])


def test_equal_seeds_give_equal_draws() -> None:
    logits = torch.zeros(50)

    def draws(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed))
        return [sampler.choose(logits) for _ in range(8)]

    assert draws(1) == draws(1) != draws(2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=name):
        Sampling(**{name: value})
