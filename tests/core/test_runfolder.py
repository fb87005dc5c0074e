"""A run folder resumes where it was."""

from pathlib import Path

import pytest

from gossamer.core.errors import OutputError
from gossamer.core.runfolder import RunFolder


class Counted:
    """A computation that counts how often it ran, and fails when told to."""

    def __init__(self) -> None:
        self.runs = 0
        self.broken = False

    def __call__(self) -> dict[str, object]:
        self.runs += 1
        if self.broken:
            raise KeyboardInterrupt
        return {"kl": 0.1 + 0.2, "pairs": (1, 2)}


def test_a_step_runs_once_for_equal_inputs(tmp_path: Path) -> None:
    compute = Counted()
    first = RunFolder(tmp_path / "run").step("sensitivity", {"bits": 4, "seed": 0}, compute)
    again = RunFolder(tmp_path / "run").step("sensitivity", {"seed": 0, "bits": 4}, compute)
    assert compute.runs == 1
    assert first == again == {"kl": 0.1 + 0.2, "pairs": [1, 2]}


def test_other_inputs_or_another_step_run_anew(tmp_path: Path) -> None:
    run, compute = RunFolder(tmp_path / "run"), Counted()
    for name, inputs in (("a", 1), ("a", 2), ("b", 1)):
        run.step(name, inputs, compute)
    assert compute.runs == 3


def test_an_interrupted_step_leaves_no_result_and_runs_again(tmp_path: Path) -> None:
    run, compute = RunFolder(tmp_path / "run"), Counted()
    run.step("first", 0, compute)
    compute.broken = True
    with pytest.raises(KeyboardInterrupt):
        run.step("second", 0, compute)
    assert [path.name.split("-")[0] for path in (tmp_path / "run" / "steps").iterdir()] == ["first"]
    compute.broken = False
    resumed = RunFolder(tmp_path / "run")
    resumed.step("first", 0, compute)
    resumed.step("second", 0, compute)
    assert compute.runs == 3


def test_an_empty_directory_becomes_a_run_and_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="neither empty nor a run folder"):
        RunFolder(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(OutputError, match="a file is in the way"):
        RunFolder(tmp_path / "mine" / "thesis.tex")
