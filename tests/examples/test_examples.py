"""The scripts in examples/ do what they say, on models and data that make them short."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

from gossamer.data.scenes import questions, scene
from gossamer.data.text import read_text
from gossamer.models.embedded import embedded_model

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def few_questions(folder: Path, pictures: int) -> Path:
    """A file of questions about rendered scenes, with the pictures beside it."""
    from PIL import Image

    lines = []
    for index in range(pictures):
        drawn = scene("val", index)
        Image.fromarray(drawn.image).save(folder / f"{index}.png")
        asked = [{"image": f"{index}.png", "question": q.text, "answer": q.answer} for q in questions(drawn)]
        lines += [json.dumps(entry) for entry in asked]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder / "questions.jsonl"


def test_compress_under_a_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = few_questions(tmp_path, 12)
    out = tmp_path / "run"
    run(monkeypatch, "compress_under_a_budget.py", "tiny-vlm-small", "--data", data, "--ratio", "0.4", "--out", out)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("16 bits: ")
    assert printed[1].startswith("compressed: ")
    assert json.loads((out / "result.json").read_text())["measured"]["weight_bytes"]["value"] <= 0.4 * 2_556_480
    assert (out / "report.html").is_file()


def test_quantise_your_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = embedded_model("tiny-lm-draft")
    assert source is not None
    shutil.copytree(source, tmp_path / "mine", ignore=shutil.ignore_patterns("gossamer.json"))
    (tmp_path / "text.txt").write_text(read_text("heldout")[0][0].text[:20_000])
    run(monkeypatch, "quantise_your_own.py", tmp_path / "mine", tmp_path / "text.txt", "--out", tmp_path / "w4")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("saved ")
    assert [line.split(":")[0] for line in printed[1:3]] == [
        f"perplexity of {tmp_path / name}" for name in ("mine", "w4")
    ]
    assert printed[3].startswith("it rose by ")
