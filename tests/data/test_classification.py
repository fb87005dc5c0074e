import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gossamer.core.errors import DataError
from gossamer.data.classification import read_classification


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)


def test_class_folders_take_turns(tmp_path):
    for name in ("dog/1", "dog/2", "cat/1", "cat/2", "cat/3"):
        picture(tmp_path / f"{name}.png")
    examples, classes, provenance = read_classification(str(tmp_path), limit=4)
    assert classes == ("cat", "dog")
    assert [e.label for e in examples] == [0, 1, 0, 1]
    assert provenance["n"] == 4
    picture(tmp_path / "dog/2.png", shade=9)
    assert read_classification(str(tmp_path))[2]["sha256"] != provenance["sha256"]


def test_split_folders(tmp_path):
    for name in ("train/a/1", "train/b/1", "test/a/1", "test/b/1", "test/b/2"):
        picture(tmp_path / f"{name}.png")
    assert read_classification(str(tmp_path))[2]["split"] == "test"
    assert len(read_classification(str(tmp_path), split="train")[0]) == 2
    with pytest.raises(DataError, match="no split 'val': it has test, train"):
        read_classification(str(tmp_path), split="val")


def test_json_lines_with_names_or_numbers(tmp_path):
    picture(tmp_path / "a.png")
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"image": "a.png", "label": label}) + "\n" for label in ("wolf", "fox")))
    examples, classes, _ = read_classification(str(path))
    assert classes == ("fox", "wolf")
    assert [e.label for e in examples] == [1, 0]
    path.write_text("".join(json.dumps({"image": "a.png", "label": label}) + "\n" for label in (10, 2)))
    examples, classes, _ = read_classification(str(path))
    assert len(classes) == 11
    assert [e.label for e in examples] == [10, 2]


def test_arrays(tmp_path):
    path = tmp_path / "x.npz"
    pixels = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4)
    np.savez(
        path, test_images=pixels, test_labels=np.array([[1], [0]]), val_images=pixels[:1], val_labels=np.array([[2]])
    )
    examples, classes, provenance = read_classification(str(path))
    assert [e.label for e in examples] == [1, 0]
    assert classes == ("0", "1")
    assert provenance["split"] == "test"
    loaded = np.asarray(examples[1].image.load())
    assert loaded.shape == (4, 4, 3)
    assert (loaded[..., 1] == pixels[1]).all()
    assert [e.label for e in read_classification(str(path), split="val")[0]] == [2]
    with pytest.raises(DataError, match=r"no split 'train' \(it has test, val\)"):
        read_classification(str(path), split="train")
    np.savez(path, x=pixels, y=np.array([3, 1]))
    assert read_classification(str(path))[2]["split"] is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 4, 4)), "y": np.zeros(2, dtype=int)}, "uint8 N x H x W"),
        ({"x": np.zeros((2, 4, 4), dtype=np.uint8), "y": np.zeros(3, dtype=int)}, "uint8 N x H x W"),
        ({"x": np.zeros((0, 4, 4), dtype=np.uint8), "y": np.zeros(0, dtype=int)}, "empty"),
        ({"x": np.array([object()]), "y": np.zeros(1, dtype=int)}, "not a readable npz"),
        ({"z": np.zeros(1)}, "SPLIT_images and SPLIT_labels"),
    ],
)
def test_bad_arrays(tmp_path, arrays, message):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message):
        read_classification(str(path))


def test_bad_files(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 4, 4), dtype=np.uint8), y=np.zeros(1, dtype=int))
    whole = (tmp_path / "x.npz").read_bytes()
    for content in (b"PK nothing", whole[:-40]):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(DataError, match="not a readable npz"):
            read_classification(str(tmp_path / "x.npz"))
    path = tmp_path / "x.jsonl"
    for text, message in (("", "is empty"), ("{}", "line 1: an object"), ("\n{", "line 2: not valid JSON")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_classification(str(path))
    path.write_text('{"image": "x.npz", "label": 0}')
    with pytest.raises(DataError, match=r"line 1: .*x.npz is not an image"):
        read_classification(str(path))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none is empty"):
        read_classification(str(tmp_path / "none"))
    with pytest.raises(DataError, match="do not exist"):
        read_classification(str(tmp_path / "no"))


def test_real_sets(tmp_path):
    if not os.environ.get("GOSSAMER_DATA"):
        pytest.skip("GOSSAMER_DATA is not set: the real data sets are elsewhere")
    folder = Path(os.environ["GOSSAMER_DATA"])
    examples, classes, _ = read_classification(str(folder / "pneumoniamnist.npz"))
    assert (len(examples), classes) == (624, ("0", "1"))
    assert len(read_classification(str(folder / "mnist_test.npz"))[0]) == 10_000
    with zipfile.ZipFile(folder / "cifar10_12k.zip") as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if "/000" in name])
    _, classes, provenance = read_classification(str(tmp_path))
    assert len(classes) == 10
    assert provenance["split"] == "test"
