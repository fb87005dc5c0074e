"""The command line as a function, and small models to point it at."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output."""
        return json.loads(self.out)

    def refused(self, *said: str) -> str:
        """Checks that the command refused its input in one clear sentence that says all of `said`; returns it."""
        assert self.code == 2, (self.code, self.err)
        assert self.out == ""
        lines = self.err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        assert lines[-1] == errors[0]
        assert "Traceback" not in self.err
        for part in said:
            assert part in errors[0], errors[0]
        return errors[0]


Gossamer = Callable[..., Ended]


@pytest.fixture
def gossamer(capfd: pytest.CaptureFixture[str]) -> Gossamer:
    """Runs a command in this process."""
    from gossamer.cli.main import run

    def call(*arguments: str | Path) -> Ended:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ended(code, *capfd.readouterr())

    return call


@pytest.fixture
def program() -> Gossamer:
    """Runs a command in a process of its own."""

    def call(*arguments: str | Path, env: dict[str, str] | None = None, **options: Any) -> Ended:
        command = [sys.executable, "-m", "gossamer", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})}, **options
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the tokenizer of tiny-lm: plumbing only."""
    return make_lm(tmp_path_factory.mktemp("models") / "random-lm")


def make_lm(directory: Path, seed: int = 0, hidden: int = 32, vocabulary: int | None = None) -> Path:
    """Saves a random Llama whose weights depend on `seed`."""
    import torch
    import transformers

    from gossamer.models.embedded import embedded_model

    source = embedded_model("tiny-lm")
    assert source is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "gossamer.json").write_text('{"task": "text", "data": "heldout"}')
    return directory


def left_behind(directory: Path) -> list[str]:
    """Everything below a directory, for the assertion that nothing half-written stays."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
