"""`gossamer evaluate`."""

from pathlib import Path

import pytest


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    return path


def test_fixed_keys_and_the_protocol(gossamer, lm: Path, text: Path) -> None:
    ended = gossamer("evaluate", lm, "--task", "text", "--data", text, "--limit", "3", "--seed", "1", "--json")
    assert (ended.code, ended.err) == (0, "")
    measured = ended.json["measured"]["perplexity"]
    assert set(measured) == {"value", "low", "high", "n", "method"}
    assert measured["low"] <= measured["value"] <= measured["high"]
    assert measured["n"] == ended.json["protocol"]["n"] == 3
    assert ended.json["protocol"]["data"] == str(text)
    assert ended.json["protocol"]["seed"] == 1
    assert ended.json["measured"]["weight_bytes"]["value"] == gossamer("inspect", lm, "--json").json["weight_bytes"]


def test_meters_are_measured_where_they_are_asked_for(gossamer, lm: Path, text: Path) -> None:
    arguments = ("evaluate", lm, "--task", "text", "--data", text, "--limit", "2")
    meters = {"prefill_ms", "decode_ms", "weight_memory_bytes", "peak_memory_bytes"}
    ended = gossamer(*arguments, "--meters", "--json")
    assert (ended.code, ended.err) == (0, "")
    measured = ended.json["measured"]
    assert meters <= set(measured)
    assert all(0 < measured[key]["low"] <= measured[key]["value"] <= measured[key]["high"] for key in meters)
    assert "expands packed weights" in ended.json["notes"][0]
    plain = gossamer(*arguments, "--json").json
    assert not meters & set(plain["measured"])
    assert plain["measured"] == {key: measured[key] for key in plain["measured"]}
    shown = gossamer(*arguments, "--meters").out
    for word in (
        "prefill",
        "decode, per token",
        " ms",
        "weights in memory, running",
        "times: quartiles",
        "peak memory",
    ):
        assert word in shown


def test_equal_seeds_give_equal_figures(gossamer, lm: Path) -> None:
    results = [gossamer("evaluate", lm, "--limit", "2", "--seed", seed, "--json").json for seed in "001"]
    assert results[0] == results[1]
    assert results[0]["measured"]["perplexity"] != results[2]["measured"]["perplexity"]


def test_the_model_suggests_task_and_data(gossamer, lm: Path) -> None:
    ended = gossamer("evaluate", lm, "--limit", "2", "--threads", "1")
    assert ended.code == 0
    assert "perplexity" in ended.out
    assert "heldout" in ended.out


def test_a_real_model_beats_a_random_one(gossamer, lm: Path) -> None:
    trained, random = (
        gossamer("evaluate", model, "--task", "text", "--data", "heldout", "--limit", "4", "--json").json
        for model in ("tiny-lm", lm)
    )
    assert trained["measured"]["perplexity"]["high"] < random["measured"]["perplexity"]["low"]
