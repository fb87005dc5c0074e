"""Nothing is ever half-written."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.core.errors import OutputError
from gossamer.core.files import canonical_json, digest, file_digest, write_json, write_text, writing, writing_directory


def names(directory: Path) -> list[str]:
    """All names in a directory, hidden ones too."""
    return sorted(os.listdir(directory))


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "grüße\n")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "grüße\n"
    assert names(tmp_path / "deep") == ["a.txt"]


@pytest.mark.parametrize("failure", [RuntimeError("mine"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises((type(failure), OutputError)), writing(target) as temporary:  # noqa: PT012
        temporary.write_text("new, but not all of")
        raise failure
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failure_keeps_the_old_directory_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with writing_directory(target) as temporary:
        (temporary / "weights").write_text("old")
    with pytest.raises(RuntimeError), writing_directory(target) as temporary:  # noqa: PT012
        (temporary / "weights").write_text("new")
        raise RuntimeError
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with writing_directory(tmp_path / "out") as temporary:
            (temporary / content).write_text(content)
    assert names(tmp_path / "out") == ["second"]
    assert names(tmp_path) == ["out"]


def test_files_in_a_directory_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with writing_directory(tmp_path / "out") as temporary:
        (temporary / "below").mkdir()
        private = temporary / "below" / "model.safetensors"
        private.touch(0o600)
    assert names(tmp_path / "out") == ["below"]
    assert (tmp_path / "out" / "below" / "model.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_place_below_a_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file/a\.txt"):
        write_text(tmp_path / "file" / "a.txt", "text")
    with pytest.raises(OutputError, match="in the way"), writing_directory(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def no_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    code = (
        "import pathlib, sys\n"
        "from gossamer.core.errors import OutputError\n"
        "from gossamer.core.files import write_text\n"
        "try: write_text(pathlib.Path(sys.argv[1]), 'x' * 5000)\n"
        "except OutputError as error: print(error)\n"
    )
    command = [sys.executable, "-B", "-c", code, str(tmp_path / "big.txt")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=no_space, check=True)
    assert "cannot write" in done.stdout
    assert "big.txt" in done.stdout
    assert names(tmp_path) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_equal_values_have_one_spelling_and_one_digest(value: dict[str, object]) -> None:
    backwards = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(backwards)
    assert digest("step", value) == digest("step", backwards)
    assert digest("step", value) != digest("another", value)


def test_a_file_digest_is_of_its_content(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    write_json(tmp_path / "b.json", {"b": 1})
    write_json(tmp_path / "c.json", {"b": 2})
    assert file_digest(tmp_path / "a.json") == file_digest(tmp_path / "b.json") != file_digest(tmp_path / "c.json")
