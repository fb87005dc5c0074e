import json
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from gossamer.core.errors import DataError
from gossamer.data.detection import read_detection


def write(folder, **changes):
    """A COCO file of one picture with two boxes, in `folder`, with tables replaced."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (20, 10)).save(folder / "images/a.png")
    root = {
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 5, 4], "area": 18},
            {"image_id": 7, "category_id": 9, "bbox": [0, 0, 20, 10], "iscrowd": 1},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    }
    path = folder / "instances_val.json"
    path.write_text(json.dumps(root | changes))
    return str(path)


def test_instances(tmp_path):
    (example,), classes, provenance = read_detection(write(tmp_path))
    assert classes == ("cat", "dog")
    assert example.boxes == ((1, 2, 6, 6), (0, 0, 20, 10))
    assert example.labels == (0, 1)
    assert example.crowd == (False, True)
    assert example.areas == (18, 200)
    assert (example.width, example.height) == example.image.load().size == (20, 10)
    assert provenance["n"] == 1
    assert read_detection(str(tmp_path))[0] == read_detection(str(tmp_path), split="val")[0] == [example]


def test_panoptic_things_are_boxes(tmp_path):
    segments = [{"category_id": 3, "bbox": [1, 1, 2, 2], "area": 3}, {"category_id": 100, "bbox": [0, 0, 20, 10]}]
    path = write(
        tmp_path,
        annotations=[{"image_id": 7, "segments_info": segments}],
        categories=[{"id": 3, "name": "cat", "isthing": 1}, {"id": 100, "name": "sky", "isthing": 0}],
    )
    (example,), classes, _ = read_detection(path)
    assert classes == ("cat",)
    assert example.boxes == ((1, 1, 3, 3),)


def test_pictures_without_boxes_and_missing_pictures(tmp_path):
    entry = {"id": 7, "file_name": "a.png"}
    path = write(tmp_path, annotations=[], images=[entry, {"id": 8, "file_name": "no.png"}])
    with pytest.raises(DataError, match=r"image 2: image .*no.png does not exist"):
        read_detection(path)
    (example,), _, _ = read_detection(path, skip_missing=True)
    assert example.boxes == example.labels == ()
    assert (example.width, example.height) == (20, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "is empty"),
        ({"images": None}, "no list 'images'"),
        ({"categories": [{"id": 3}]}, "needs id and name"),
        ({"images": [{"id": 1}]}, "image 1: id and file_name"),
        ({"annotations": [{"category_id": 3}]}, "annotation 1: image_id is missing"),
        ({"annotations": [{"image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 1]}]}, "annotation 1: category 5"),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": [0, 0, -1, 1]}]}, "annotation 1: bbox must be"),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": "0 0 1 1"}]}, "annotation 1: bbox must be"),
    ],
)
def test_bad_entries_are_named(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_detection(path)
    assert path in str(caught.value)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"images": [,')
    with pytest.raises(DataError, match=r"x.json line 1: not valid JSON"):
        read_detection(str(path))
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="not UTF-8"):
        read_detection(str(path))
    with pytest.raises(DataError, match="do not exist"):
        read_detection(str(tmp_path / "no"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no JSON file"):
        read_detection(str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"image folder .* does not exist"):
        read_detection(write(tmp_path), images=str(tmp_path / "no"))


def test_scenes(tmp_path):
    examples, classes, provenance = read_detection("scenes", split="val", limit=5, size=96)
    assert len(classes) == 48
    assert classes[0] == "red circle"
    assert provenance["n"] == len(examples) == 5
    assert examples[0].image.load().size == (96, 96)
    assert all(0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 96 for e in examples for x0, y0, x1, y1 in e.boxes)
    with pytest.raises(DataError, match="no split 'dev'"):
        read_detection("scenes", split="dev")


def test_real_coco_photos(tmp_path):
    if not os.environ.get("GOSSAMER_DATA"):
        pytest.skip("GOSSAMER_DATA is not set: the real data sets are elsewhere")
    with zipfile.ZipFile(Path(os.environ["GOSSAMER_DATA"]) / "coco_cc.zip") as archive:
        archive.extractall(tmp_path)
    boxes = pictures = 0
    for split in ("train", "val"):
        examples, classes, _ = read_detection(str(tmp_path / f"panoptic_{split}2017_100.json"), skip_missing=True)
        pictures += len(examples)
        boxes += sum(len(e.boxes) for e in examples)
        assert len(classes) == 80
    assert pictures == 53
    assert boxes == 355
