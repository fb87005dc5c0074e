"""Average precision as COCO defines it, matched once by pycocotools and summed up again for every bootstrap draw."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.core.outcome import Measure
from gossamer.data.detection import DetectionExample
from gossamer.evaluate.intervals import percentile, resamples

DRAWS = 500
RECALLS = np.linspace(0.0, 1.0, 101)
THRESHOLDS = np.linspace(0.5, 0.95, 10)
CHUNK_NUMBERS = 2**20
MOST_DETECTIONS = 100
"""Detections of one class in one picture that count, as in COCO."""


Floats = NDArray[np.float64]


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
    from pycocotools import coco, cocoeval

    make: Any = coco.COCO
    with contextlib.redirect_stdout(io.StringIO()):
        truth = make()
        truth.dataset = _truth(examples, classes)
        truth.createIndex()
        rows = [
            {"image_id": i, "category_id": int(c), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(s)}
            for i, one in enumerate(found)
            for (x0, y0, x1, y1), s, c in zip(one.boxes.tolist(), one.scores, one.labels, strict=True)
        ]
        guesses = truth.loadRes(rows) if rows else make()
        run: Any = cocoeval.COCOeval(truth, guesses, "bbox")  # type: ignore[no-untyped-call, unused-ignore]
        run.params.maxDets = [MOST_DETECTIONS]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.params.imgIds, run.params.catIds = list(range(len(examples))), list(range(classes))
        run.evaluate()
    n = len(examples)
    return tuple(_collect(run.evalImgs[c * n : (c + 1) * n]) for c in range(classes))


def _truth(examples: Sequence[DetectionExample], classes: int) -> dict[str, list[dict[str, Any]]]:
    images: list[dict[str, Any]] = [{"id": i, "width": e.width, "height": e.height} for i, e in enumerate(examples)]
    annotations: list[dict[str, Any]] = []
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
    matches: Sequence[ClassMatches], weights: Floats | None = None, thresholds: slice = slice(None)
) -> Floats:
    """AP at each IoU threshold, averaged over the classes that have something to find: (draws, thresholds), 0 to 1.

    `weights` (draws, pictures) count each picture that often; without it one draw counts each once. NaN for draws in
    which no class has anything to find.
    """
    w = np.ones((1, len(matches[0].truths))) if weights is None else weights
    total = np.zeros((len(w), len(THRESHOLDS[thresholds])))
    classes = np.zeros((len(w), 1))
    for one in matches:
        wanted = w @ one.truths
        classes[:, 0] += wanted > 0
        if one.truths.any():
            total += _curve_means(one, w, np.maximum(wanted, 1), thresholds)
    return np.divide(total, classes, out=np.full_like(total, np.nan), where=classes > 0)


def _curve_means(one: ClassMatches, w: Floats, wanted: Floats, thresholds: slice) -> Floats:
    """COCO's mean of the interpolated precision at 101 recalls: (draws, thresholds).

    A recall's precision is that of the first detection that reaches it, so each detection's precision counts as
    often as there are recalls that it is the first to reach.
    """
    each = w[:, None, one.image]
    hits = np.cumsum(one.hit[thresholds] * each, axis=2)
    misses = np.cumsum(one.miss[thresholds] * each, axis=2)
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
    reached = np.searchsorted(RECALLS, hits / wanted[:, None, None], side="right")
    first = np.diff(reached, axis=2, prepend=0)
    return np.asarray((precision * first).sum(2) / len(RECALLS))


def _draws(runs: Sequence[Sequence[ClassMatches]], thresholds: slice, seed: int, draws: int) -> Floats:
    """Mean AP over `thresholds` of each run, all runs on the same resampled pictures: (draws, runs)."""
    n = len(runs[0][0].truths)
    most = max((len(one.image) for run in runs for one in run), default=1)
    step = max(1, CHUNK_NUMBERS // (len(THRESHOLDS) * max(1, most)))
    counts = np.stack([np.bincount(row, minlength=n) for rows in resamples(n, seed, draws) for row in rows])
    chunks = [counts[start : start + step].astype(np.float64) for start in range(0, draws, step)]
    columns = [np.concatenate([average_precision(run, w, thresholds).mean(1) for w in chunks]) for run in runs]
    return np.stack(columns, axis=1)


def ap_measure(
    matches: Sequence[ClassMatches], thresholds: slice = slice(None), seed: int = 0, draws: int = DRAWS
) -> Measure:
    """Mean AP over `thresholds` with a bootstrap over pictures. `slice(0, 1)` is AP50."""
    value = float(average_precision(matches, thresholds=thresholds).mean())
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
    value = float(
        (average_precision(after, thresholds=thresholds) - average_precision(before, thresholds=thresholds)).mean()
    )
    drawn = np.diff(_draws([before, after], thresholds, seed, draws), axis=1)[:, 0]
    return percentile(value, drawn[~np.isnan(drawn)], len(before[0].truths), "paired bootstrap over images")
