"""Average precision as COCO defines it, matched once by pycocotools and summed up again for every bootstrap draw."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.core.outcome import Measure
from gossamer.data.detection import DetectionExample
from gossamer.evaluate.intervals import percentile, resamples

DRAWS = 500
RECALLS = np.linspace(0.0, 1.0, 101)
THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST_DETECTIONS = 100
"""Detections of one class in one picture that count, as in COCO."""


@dataclass(frozen=True)
class Detections:
    """What was found on one picture: `boxes` (k, 4) as (x0, y0, x1, y1) in pixels, `scores` (k,), `labels` (k,)."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class over all pictures, best first, up to the last one that is right anywhere.

    `image` (d,) is each one's picture, `hit` and `miss` (thresholds, d) whether it counts as right or wrong (neither,
    if it matches a crowd), `truths` (pictures,) how many objects there are to find.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.float64]
    miss: NDArray[np.float64]
    truths: NDArray[np.int64]


def match(examples: Sequence[DetectionExample], found: Sequence[Detections], classes: int) -> tuple[ClassMatches, ...]:
    """Matches detections with the truth, class by class, at IoU 0.50, 0.55, … 0.95 (pycocotools' greedy matching)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _truth(examples, classes)
        truth.createIndex()
        rows = [
            {"image_id": i, "category_id": int(c), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(s)}
            for i, one in enumerate(found)
            for (x0, y0, x1, y1), s, c in zip(one.boxes.tolist(), one.scores, one.labels, strict=True)
        ]
        run = COCOeval(truth, truth.loadRes(rows) if rows else COCO(), "bbox")
        run.params.maxDets = [MOST_DETECTIONS]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.params.imgIds, run.params.catIds = list(range(len(examples))), list(range(classes))
        run.evaluate()
    n = len(examples)
    return tuple(_collect(run.evalImgs[c * n : (c + 1) * n]) for c in range(classes))


def _truth(examples: Sequence[DetectionExample], classes: int) -> dict[str, list[dict[str, object]]]:
    images = [{"id": i, "width": e.width, "height": e.height} for i, e in enumerate(examples)]
    annotations: list[dict[str, object]] = []
    for i, e in enumerate(examples):
        for (x0, y0, x1, y1), label, crowd, area in zip(e.boxes, e.labels, e.crowd, e.areas, strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": i, "category_id": label, "bbox": box,
                    "area": area, "iscrowd": int(crowd),
                }
            )  # fmt: skip
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in range(classes)],
    }


def _collect(rows: list[dict[str, NDArray[np.float64]] | None]) -> ClassMatches:
    truths = np.array([0 if r is None else int((np.asarray(r["gtIgnore"]) == 0).sum()) for r in rows], dtype=np.int64)
    kept = [(i, r) for i, r in enumerate(rows) if r is not None]
    scores = np.concatenate([np.asarray(r["dtScores"], dtype=np.float64) for _, r in kept] or [np.zeros(0)])
    order = np.argsort(-scores, kind="mergesort")
    image = np.concatenate([np.full(len(r["dtScores"]), i) for i, r in kept] or [np.zeros(0)]).astype(np.int64)[order]
    none = np.zeros((len(THRESHOLDS), 0))
    matched = np.concatenate([np.asarray(r["dtMatches"]) for _, r in kept] or [none], axis=1)[:, order] > 0
    ignored = np.concatenate([np.asarray(r["dtIgnore"]) for _, r in kept] or [none], axis=1)[:, order] > 0
    hit, miss = matched & ~ignored, ~matched & ~ignored
    last = int(np.flatnonzero(hit.any(0))[-1]) + 1 if hit.any() else 0
    return ClassMatches(image[:last], hit[:, :last].astype(float), miss[:, :last].astype(float), truths)


def average_precision(
    matches: Sequence[ClassMatches], weights: NDArray[np.float64] | None = None, thresholds: slice = slice(None)
) -> NDArray[np.float64]:
    """AP at each IoU threshold, averaged over the classes that have something to find: (thresholds,), 0 to 1.

    `weights` (pictures,) count each picture that often (default once). NaN where no class has anything to find.
    """
    curves = []
    for one in matches:
        w = np.ones(len(one.truths)) if weights is None else weights
        wanted = float(one.truths @ w)
        if wanted == 0:
            continue
        hits = np.cumsum(one.hit[thresholds] * w[one.image], axis=1)
        misses = np.cumsum(one.miss[thresholds] * w[one.image], axis=1)
        precision = hits / (hits + misses + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(precision, ((0, 0), (0, 1)))
        places = np.stack([np.searchsorted(row / wanted, RECALLS, side="left") for row in hits])
        curves.append(np.take_along_axis(padded, places, axis=1).mean(1))
    if curves:
        return np.mean(curves, axis=0)
    return np.full(len(THRESHOLDS[thresholds]), np.nan)


def _draws(runs: Sequence[Sequence[ClassMatches]], thresholds: slice, seed: int, draws: int) -> NDArray[np.float64]:
    """Mean AP over `thresholds` of each run, all runs on the same resampled pictures: (draws, runs)."""
    n = len(runs[0][0].truths)
    weights = (np.bincount(row, minlength=n).astype(float) for rows in resamples(n, seed, draws) for row in rows)
    return np.array([[average_precision(run, w, thresholds).mean() for run in runs] for w in weights])


def ap_measure(
    matches: Sequence[ClassMatches], thresholds: slice = slice(None), seed: int = 0, draws: int = DRAWS
) -> Measure:
    """Mean AP over `thresholds` with a bootstrap over pictures. `slice(0, 1)` is AP50."""
    value = float(average_precision(matches, None, thresholds).mean())
    drawn = _draws([matches], thresholds, seed, draws)[:, 0]
    return percentile(value, drawn[~np.isnan(drawn)], len(matches[0].truths), "bootstrap over images")


def ap_difference(
    before: Sequence[ClassMatches],
    after: Sequence[ClassMatches],
    thresholds: slice = slice(None),
    seed: int = 0,
    draws: int = DRAWS,
) -> Measure:
    """Mean AP after minus before, both on the same resampled pictures."""
    value = float((average_precision(after, None, thresholds) - average_precision(before, None, thresholds)).mean())
    drawn = np.diff(_draws([before, after], thresholds, seed, draws), axis=1)[:, 0]
    return percentile(value, drawn[~np.isnan(drawn)], len(before[0].truths), "paired bootstrap over images")
