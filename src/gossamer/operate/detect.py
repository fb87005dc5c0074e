"""The `detect` job: where on pictures is what some words say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gossamer.core.errors import DataError, SettingError
from gossamer.core.files import writing_directory
from gossamer.core.runfolder import checkpoint_of
from gossamer.data.images import load_image
from gossamer.evaluate.detection import check_detects, corners_of, pads_to_squares, query_inputs, unit_square
from gossamer.evaluate.meters import latency
from gossamer.models.open import Opened, open_model

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000")


@dataclass(frozen=True)
class Found:
    """One box: its corners x0, y0, x1, y1 in pixels of the picture, the query that it answers, how surely, 0 to 1."""

    box: tuple[float, float, float, float]
    query: str
    score: float


@dataclass(frozen=True)
class Rule:
    """Which boxes count: those at least as sure as `threshold`, at most `most` of a picture, and of one query none that
    overlaps a surer one by more than `overlap` (intersection over union; 1 keeps all)."""

    threshold: float = 0.3
    most: int = 100
    overlap: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("overlap", self.overlap)):
            if not 0 <= value <= 1:
                raise SettingError(f"{name} {value} is not possible: give 0 to 1")
        if self.most < 1:
            raise SettingError(f"{self.most} boxes are not possible: give 1 or more")


def detect(
    ref: str, images: Sequence[Path], queries: Sequence[str], rule: Rule | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Looks for every query on every picture, with the detector, or the checkpoint of the run folder, `ref`.

    `out` is a folder for the pictures with their boxes drawn. Returns `images`, each with `image`, `width`, `height`
    and `found` (see `Found`), the surest first, and under `measured` `time_per_image_ms`, from the decoded picture to
    its boxes. Raises `DataError` for a model that does not find things by text, pictures that cannot be read and empty
    queries.
    """
    rule = rule or Rule()
    if not images:
        raise DataError("there is no picture to look at: give --image, once or more")
    if not queries or not all(query.strip() for query in queries):
        raise DataError("there is nothing to look for: give --query with some words, once or more")
    pictures = [load_image(path, "--image") for path in images]
    opened = open_model(checkpoint_of(ref))
    check_detects(opened)
    words = query_inputs(opened, queries)
    found, times = [], []
    for picture in pictures:
        start = time.perf_counter()
        found.append(look(opened, picture, words, queries, rule))
        times.append(1000 * (time.perf_counter() - start))
    if out is not None:
        with writing_directory(out) as folder:
            for number, (path, picture, boxes) in enumerate(zip(images, pictures, found, strict=True)):
                drawn(picture, boxes, queries).save(folder / f"{number:03d}-{path.stem}.png")
    how = "one picture" if len(times) == 1 else "median and quartiles of the pictures"
    return {
        "model": {"name": ref, "family": opened.hierarchy.family, "fingerprint": opened.fingerprint},
        "queries": list(queries),
        "rule": asdict(rule),
        "images": [
            {
                "image": str(path),
                "width": picture.width,
                "height": picture.height,
                "found": [asdict(one) for one in boxes],
            }
            for path, picture, boxes in zip(images, pictures, found, strict=True)
        ],
        "measured": {"time_per_image_ms": latency(times, how).model_dump()},
    }


def look(opened: Opened, picture: Image, words: dict[str, Tensor], queries: Sequence[str], rule: Rule) -> list[Found]:
    """What is found on one picture, the surest first."""
    import torch

    from gossamer.engine.forward import forward

    processor: Any = opened.processor
    pixels = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        output = forward(opened.model, {**words, "pixel_values": pixels})
    scores, labels = output.logits[0].float().sigmoid().max(-1)
    scale = unit_square(pads_to_squares(opened), *picture.size)
    corners = corners_of(output.pred_boxes[0], scale).clip(0, (*picture.size, *picture.size))
    kept: list[int] = []
    for at in torch.argsort(scores, descending=True, stable=True).tolist():
        if len(kept) == rule.most or float(scores[at]) < rule.threshold:
            break
        rivals = [other for other in kept if labels[other] == labels[at]]
        if all(_overlap(corners[at], corners[other]) <= rule.overlap for other in rivals):
            kept.append(at)
    sides: list[Any] = corners.round(1).tolist()
    return [Found(tuple(sides[at]), queries[int(labels[at])], float(scores[at])) for at in kept]


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(inner.clip(min=0).prod())
    both = float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod()) - shared
    return shared / both if both > 0 else 1.0


def drawn(picture: Image, found: Sequence[Found], queries: Sequence[str]) -> Image:
    """A copy of the picture with its boxes and their names, a colour for each query."""
    from PIL import ImageDraw

    copy = picture.copy()
    draw = ImageDraw.Draw(copy)
    line = max(1, min(picture.size) // 160)
    for one in reversed(found):  # the surest on top
        colour = _COLOURS[list(queries).index(one.query) % len(_COLOURS)]
        draw.rectangle(one.box, outline=colour, width=line)
        draw.text((one.box[0] + 2 * line, one.box[1] + line), f"{one.query} {one.score:.2f}", fill=colour)
    return copy
