"""The run folder: each step's result is a file keyed by its inputs, so an interrupted job resumes where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gossamer.core.errors import OutputError
from gossamer.core.files import digest, write_json

Json = Any


MARKER = "gossamer-run.json"


def check_run_folder(path: Path, owner: str | None = None) -> None:
    """Raises `OutputError` if `path` cannot be a run folder of the model whose fingerprint is `owner`."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"cannot use {path} as a run folder: a file is in the way; choose a directory")
    marker = path / MARKER
    if not marker.exists():
        if path.is_dir() and any(path.iterdir()):
            raise OutputError(f"{path} is neither empty nor a run folder: choose another --out, or empty it first")
        return
    found = json.loads(marker.read_text(encoding="utf-8")).get("model")
    if None not in (found, owner) and found != owner:
        raise OutputError(
            f"{path} holds the candidates of another model ({found[:19]}…, this one is {str(owner)[:19]}…): choose "
            "another --out"
        )


def checkpoint_of(reference: str) -> str:
    """The checkpoint inside, if `reference` is a run folder that has one; else the reference itself."""
    inside = Path(reference) / "checkpoint"
    return str(inside) if (Path(reference) / MARKER).exists() and inside.is_dir() else reference


class RunFolder:
    """A directory of step results. `steps/NAME-KEY.json` holds a result and the inputs that KEY is the digest of.

    `owner` is the fingerprint of the model that it is about. Raises `OutputError` if the folder cannot be written, or
    holds something that is not a run or another model's.
    """

    def __init__(self, path: Path, owner: str | None = None) -> None:
        self.path = path
        check_run_folder(path, owner)
        if not (path / MARKER).exists():
            write_json(path / MARKER, {"gossamer_run": 1, **({} if owner is None else {"model": owner})})

    def file(self, name: str, inputs: Json, suffix: str) -> Path:
        """Where the result of step `name` on `inputs` lives."""
        return self.path / "steps" / f"{name}-{digest(name, inputs)}{suffix}"

    def step(self, name: str, inputs: Json, compute: Callable[[], Json]) -> Json:
        """The JSON result of `compute()`, taken from disk if this step has run on equal inputs before.

        The fresh result is read back from its JSON text, so resumed and uninterrupted runs see the same values.
        """
        path = self.file(name, inputs, ".json")
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))["result"]
        result = compute()
        write_json(path, {"step": name, "inputs": inputs, "result": result})
        return json.loads(path.read_text(encoding="utf-8"))["result"]
