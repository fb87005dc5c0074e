import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from gossamer.core.errors import DataError
from gossamer.data import images
from gossamer.data.vqa import read_vqa, scenes_digest


def picture(path, mode="RGB", size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 1).save(path)
    return path


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_json_lines_with_images_beside(tmp_path):
    picture(tmp_path / "pics/a.png", "L")
    data = lines(
        tmp_path / "q.jsonl",
        {"image": "pics/a.png", "question": "Is it grey?", "answer": "Yes"},
        {"image": "pics/a.png", "question": "What colour?", "answer": "grey", "kind": "colour"},
    )
    examples, provenance = read_vqa(data)
    assert [(e.question, e.answer, e.closed, e.kind) for e in examples] == [
        ("Is it grey?", "Yes", True, None),
        ("What colour?", "grey", False, "colour"),
    ]
    assert examples[0].image == examples[1].image
    loaded = examples[0].image.load()
    assert (loaded.mode, loaded.size) == ("RGB", (8, 6))
    assert provenance["n"] == 2
    assert len(provenance["sha256"]) == 64


def test_the_digest_covers_the_pictures_and_not_the_limit(tmp_path):
    row = {"image": "a.png", "question": "q", "answer": "yes"}
    data = lines(tmp_path / "q.jsonl", row, row)
    picture(tmp_path / "a.png")
    first = read_vqa(data)[1]["sha256"]
    assert read_vqa(data, limit=1)[1]["sha256"] == first
    assert len(read_vqa(data, limit=1)[0]) == 1
    picture(tmp_path / "a.png", size=(9, 9))
    assert read_vqa(data)[1]["sha256"] != first


def test_vqa_rad_layout(tmp_path):
    picture(tmp_path / "images/x.jpg")
    entry = {
        "image_name": "x.jpg",
        "question": "How many?",
        "answer": 2,
        "answer_type": "OPEN",
        "question_type": "Count ",
    }
    (tmp_path / "val.json").write_text(
        json.dumps([entry, {**entry, "answer": "left", "answer_type": "CLOSED "}, {**entry, "answer_type": ""}])
    )
    for data, split in ((tmp_path, "val"), (tmp_path, None), (tmp_path / "val.json", None)):
        examples, _ = read_vqa(str(data), split=split)
        assert [(e.answer, e.closed, e.kind) for e in examples] == [
            ("2", False, "COUNT"),
            ("left", True, "COUNT"),
            ("2", False, "COUNT"),
        ]
    with pytest.raises(DataError, match="no split 'test': it has val"):
        read_vqa(str(tmp_path), split="test")


def test_easy_vqa_layout(tmp_path):
    picture(tmp_path / "test/images/0.png")
    (tmp_path / "test/questions.json").write_text(json.dumps([["is it red?", "no", 0]]))
    for data in (tmp_path, tmp_path / "test"):
        (example,), _ = read_vqa(str(data))
        assert (example.question, example.answer, example.closed) == ("is it red?", "no", True)


def test_scenes_are_built_in_and_repeatable():
    examples, provenance = read_vqa("scenes", split="val", limit=30)
    again, _ = read_vqa("scenes", split="val", limit=40)
    assert len(examples) == provenance["n"] == 30
    assert examples == again[:30]
    assert {e.kind for e in examples} >= {"exist", "count", "spatial"}
    assert np.asarray(examples[0].image.load()).shape == (64, 64, 3)
    assert scenes_digest("val") == provenance["sha256"] != scenes_digest("test")
    with pytest.raises(DataError, match="train, val, test"):
        read_vqa("scenes", split="dev")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"image": "a.png", "question": "q", "answer": "a"}\n{"image": "a.png"', "line 2.*JSON"),
        ('\n{"image": "a.png", "question": "q"}', "line 2.*'answer' is missing"),
        ('{"image": "a.png", "question": " ", "answer": "x"}', "line 1.*'question' is missing or empty"),
        ('{"question": "q", "answer": "x"}', "line 1.*'image' is missing"),
        ('{"image": "no.png", "question": "q", "answer": "a"}', "line 1: image .*no.png does not exist"),
        ('{"image": "text.png", "question": "q", "answer": "a"}', "line 1: .*text.png is not an image"),
        ("[1, 2]", "entry 1.*object"),
        ("[1, 2", "line 1.*not valid JSON"),
    ],
)
def test_bad_entries_are_named(tmp_path, text, message):
    picture(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no picture")
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_vqa(str(path))
    assert "\n" not in str(caught.value)


def test_truncated_and_huge_pictures_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    data = lines(tmp_path / "q.jsonl", {"image": "a.png", "question": "q", "answer": "a"})
    (example,), _ = read_vqa(data)
    with pytest.raises(DataError, match=r"line 1: image .* is damaged"):
        example.image.load()
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    with pytest.raises(DataError, match="too many pixels"):
        read_vqa(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="too many pixels"):
        read_vqa(data)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 0x8000], [0xFFFF, 0x0100]], dtype=np.uint16)).save(path)
    assert np.asarray(images.load_image(path, "x"))[..., 0].tolist() == [[0, 128], [255, 1]]


def test_missing_places(tmp_path):
    with pytest.raises(DataError, match="do not exist"):
        read_vqa(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="holds no questions"):
        read_vqa(str(tmp_path))


def test_real_vqa_rad(tmp_path):
    import os
    from pathlib import Path

    if not os.environ.get("GOSSAMER_DATA"):
        pytest.skip("GOSSAMER_DATA is not set: the real data sets are elsewhere")
    with zipfile.ZipFile(Path(os.environ["GOSSAMER_DATA"]) / "vqa_rad.zip") as archive:
        archive.extractall(tmp_path)
    examples, provenance = read_vqa(str(tmp_path), split="val")
    assert provenance["n"] == 345
    assert len({e.image.key for e in examples}) == 32
    assert len(read_vqa(str(tmp_path), split="train")[0]) == 2441
