"""`gossamer detect` on pictures of the built-in scenes, and what it refuses."""

from pathlib import Path

import pytest
from PIL import Image

from gossamer.evaluate.detection import open_detection
from gossamer.models.open import open_model


@pytest.fixture(scope="module")
def task():
    return open_detection("scenes", open_model("tiny-ovd"), split="test", limit=6)


def test_what_is_there_is_found_where_it_is(gossamer, task, tmp_path: Path) -> None:
    hits = truths = 0
    for number, example in enumerate(task.examples):
        file = tmp_path / f"{number}.png"
        example.image.load().save(file)
        arguments = [part for name in task.classes for part in ("--query", name)]
        found = gossamer("detect", "tiny-ovd", "--image", file, *arguments, "--threshold", "0.2", "--json").json
        (picture,) = found["images"]
        assert [one["score"] for one in picture["found"]] == sorted(
            (o["score"] for o in picture["found"]), reverse=True
        )
        for box, label in zip(example.boxes, example.labels, strict=True):
            truths += 1
            hits += any(one["query"] == task.classes[label] and close(one["box"], box) for one in picture["found"])
    assert hits >= 0.6 * truths > 0


def close(one, other) -> bool:
    width, height = (min(one[2 + k], other[2 + k]) - max(one[k], other[k]) for k in (0, 1))
    shared = max(0, width) * max(0, height)
    return shared > 0.5 * (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared)


def test_boxes_are_drawn_and_listed(gossamer, task, tmp_path: Path) -> None:
    files = []
    for number, example in enumerate(task.examples[:2]):
        files += ["--image", tmp_path / f"{number}.png"]
        example.image.load().save(files[-1])
    arguments = [*files, "--query", task.classes[0], "--threshold", "0", "--out", tmp_path / "drawn"]
    said = gossamer("detect", "tiny-ovd", *arguments).out.splitlines()
    assert said
    assert all(task.classes[0] in line for line in said)
    pictures = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in pictures] == ["000-0.png", "001-1.png"]
    assert Image.open(pictures[0]).convert("RGB").tobytes() != Image.open(files[1]).convert("RGB").tobytes()


def test_fewer_boxes_by_each_rule(gossamer, task, tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    task.examples[0].image.load().save(file)

    def count(*settings: str) -> int:
        arguments = ("detect", "tiny-ovd", "--image", file, "--query", task.classes[0], "--threshold", "0")
        return len(gossamer(*arguments, *settings, "--json").json["images"][0]["found"])

    everything = count("--overlap", "1", "--most", "10000")
    assert count("--overlap", "0.3", "--most", "10000") < everything
    assert count("--overlap", "1", "--most", "7") == 7


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tiny-ovd", "--image", "{image}", "--query", " "), "there is nothing to look for"),
        (("tiny-ovd", "--image", "{image}", "--query", "cat", "--threshold", "2"), "threshold 2.0 is not possible"),
        (("tiny-ovd", "--image", "{text}", "--query", "cat"), "is not an image"),
        (("tiny-lm", "--image", "{image}", "--query", "cat"), "tiny-lm finds nothing by text"),
    ],
)
def test_bad_input_is_one_sentence(gossamer, tmp_path: Path, arguments, sentence: str) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no image")
    places = {"image": tmp_path / "image.png", "text": tmp_path / "text.png"}
    gossamer("detect", *(part.format(**places) for part in arguments)).refused(sentence)
