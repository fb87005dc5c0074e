"""The training loop on a tiny language model: it learns, and an interruption leaves no trace in the result."""

import os
import random
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

import lm
import loop

STEPS = 12


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A little language in two books, and a model for it."""
    draw = random.Random(0)
    names, verbs = ["the fox", "a hen", "the old man", "my aunt"], ["saw", "fed", "chased", "forgot"]
    with zipfile.ZipFile(tmp_path / "books.zip", "w") as archive:
        for book in ("a.txt", "b.txt"):
            chapters = []
            for number in range(1, 6):
                sentences = [f"{draw.choice(names)} {draw.choice(verbs)} {draw.choice(names)}." for _ in range(200)]
                chapters.append(f"CHAPTER {number}\n\n{' '.join(sentences)}")
            archive.writestr(book, "\n\n".join(chapters))
    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path))
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    return {
        "seed": 0, "steps": STEPS, "batch": 4, "lr": 0.01, "warmup": 3, "validate": 4, "export": "unused",
        "model": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "attention_dropout": 0.1,  # so that the random state matters
        },
        "data": {
            "archive": "books.zip", "context": 32, "vocabulary": 300,
            "held_out": {
                "heldout": {"book": "a.txt", "from": "CHAPTER 5"},
                "validation": {"book": "b.txt", "from": "CHAPTER 5"},
            },
        },
    }  # fmt: skip


def start(config: dict[str, Any]) -> tuple[lm.LanguageModel, loop.Recipe]:
    torch.manual_seed(config["seed"])
    return lm.build(config), loop.Recipe.of(config)


def uninterrupted(config: dict[str, Any], work: Path) -> dict[str, torch.Tensor]:
    job, recipe = start(config)
    assert loop.train(job, recipe, work)
    return job.model.state_dict()


def assert_same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def at_step(job: lm.LanguageModel, wanted: int, act: Any) -> None:
    """Do something in the middle of a run."""
    real = job.loss

    def loss(step: int, batch_size: int) -> Any:
        if step == wanted:
            act()
        return real(step, batch_size)

    job.loss = loss  # type: ignore[method-assign]


def test_it_learns(config: dict[str, Any], tmp_path: Path) -> None:
    job, recipe = start({**config, "steps": 40})
    before = job.evaluate(8)["nll"]
    assert loop.train(job, recipe, tmp_path / "work")
    assert job.evaluate(8)["nll"] < before - 1


def test_a_signal_saves_and_resuming_gives_the_same_bits(config: dict[str, Any], tmp_path: Path) -> None:
    expected = uninterrupted(config, tmp_path / "straight")

    job, recipe = start(config)
    at_step(job, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not loop.train(job, recipe, tmp_path / "work")
    job, recipe = start(config)
    assert loop.load(tmp_path / "work/checkpoint.pt", job).step == 6
    assert loop.train(job, recipe, tmp_path / "work")
    assert_same_bits(job.model.state_dict(), expected)


def test_a_crash_between_checkpoints_costs_steps_but_no_bits(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = uninterrupted(config, tmp_path / "straight")

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    job, recipe = start(config)
    at_step(job, 4, lambda: monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 1e9))
    at_step(job, 8, die)
    with pytest.raises(Killed):
        loop.train(job, recipe, tmp_path / "work")
    job, recipe = start(config)
    assert loop.load(tmp_path / "work/checkpoint.pt", job).step == 4
    assert loop.train(job, recipe, tmp_path / "work")
    assert_same_bits(job.model.state_dict(), expected)


def test_each_epoch_visits_every_window_once(config: dict[str, Any]) -> None:
    job, _ = start(config)
    per_epoch = (len(job.tokens) - 1) // 32 - 1
    one_by_one = torch.cat([job.rows(i, 1) for i in range(per_epoch)])
    assert torch.equal(job.rows(0, per_epoch), one_by_one)
    assert job.rows(1, per_epoch).shape == (per_epoch, 33)
    starts = {tuple(row.tolist()) for row in one_by_one}
    assert len(starts) == per_epoch


def test_held_out_parts_are_in_no_chapter(config: dict[str, Any]) -> None:
    chapters, parts = lm.split(lm.books(lm.archive_path(config["data"])), config["data"]["held_out"])
    assert len(chapters) == 8
    assert all(part.startswith("CHAPTER 5\n\n") for part in parts.values())
    assert not any(part[50:200] in chapter for part in parts.values() for chapter in chapters)


def test_the_schedule_warms_up_and_ends_at_a_twentieth(config: dict[str, Any]) -> None:
    recipe = loop.Recipe.of({**config, "warmup": 4, "steps": 100})
    rates = [recipe.lr_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.0025)
    assert max(rates) == pytest.approx(0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[100] == pytest.approx(0.0005)


def test_only_matrices_decay(config: dict[str, Any]) -> None:
    job, recipe = start(config)
    matrices, others = loop.optimiser(job.model, recipe).param_groups
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert matrices["weight_decay"] == recipe.weight_decay
    assert all(p.ndim < 2 for p in others["params"])
    assert others["weight_decay"] == 0


def test_the_export_reloads_with_its_tokenizer(config: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job, _ = start(config)
    job.export(tmp_path)
    text = "CHAPTER 9\n\nThe fox saw — ünïcode.  Two spaces, and\ttabs.\n"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(text)["input_ids"] == job.tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float16
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    exact = job.model.eval()(ids).logits
    assert torch.allclose(model.float()(ids).logits, exact, atol=1e-3)
