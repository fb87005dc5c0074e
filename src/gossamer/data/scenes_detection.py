"""Scenes as detection data: text queries, normalised boxes and COCO dictionaries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.data.scenes_render import COLOURS, SHAPES, Scene

PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES)
"""The 48 classes, colour by colour; a class's number is its place here."""

QUERY = "{colour} {shape}"
"""What the text tower is asked for one class."""


def targets(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Class numbers (n,) int64 and boxes (n, 4) float32 as (centre x, centre y, width, height), each 0..1."""
    labels = np.array([PAIRS.index((o.colour, o.shape)) for o in scene.objects], dtype=np.int64)
    b = np.array([o.box for o in scene.objects], dtype=np.float32) / np.float32(scene.width)
    boxes = np.stack([(b[:, 0] + b[:, 2]) / 2, (b[:, 1] + b[:, 3]) / 2, b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]], axis=1)
    return labels, boxes


def coco(scenes: Iterable[Scene]) -> dict[str, Any]:
    """Ground truth in COCO's form: boxes [x, y, width, height] in pixels; image ids are the scenes' indices."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for s in scenes:
        images.append({"id": s.index, "width": s.width, "height": s.image.shape[0]})
        for o in s.objects:
            x0, y0, x1, y1 = o.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": s.index,
                    "category_id": PAIRS.index((o.colour, o.shape)),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": f"{c} {s}"} for i, (c, s) in enumerate(PAIRS)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}
