"""What is built is built once, whoever asks at the same time, and not at all where building fails."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gossamer.core.errors import OutputError
from gossamer.eda.cache import built


def test_all_who_ask_at_once_get_one_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    together, made = threading.Barrier(4), []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.05)
        (folder / "it").write_text("x")

    def ask(_: int) -> str:
        together.wait()
        return (built("thing", ("key", 1), make) / "it").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["x"] * 4
    assert len(made) == 1
    built("thing", ("key", 2), make)
    assert len(made) == 2


def test_a_failed_build_leaves_nothing_and_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        built("thing", ("key",), fail)
    assert not [path for path in (tmp_path / "gossamer" / "eda").iterdir() if path.is_dir()]
    assert (built("thing", ("key",), lambda folder: None)).is_dir()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot write .*file.gossamer.eda: .*; set XDG_CACHE_HOME"):
        built("thing", ("key",), lambda folder: None)
