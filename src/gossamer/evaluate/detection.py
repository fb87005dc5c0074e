"""Open-vocabulary detection: average precision of boxes found by text, as COCO scores it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gossamer.core.errors import DataError
from gossamer.core.outcome import Measure
from gossamer.core.progress import SILENT, Progress
from gossamer.data.batch import Batch
from gossamer.data.detection import DetectionExample, read_detection
from gossamer.evaluate.intervals import bootstrap_mean
from gossamer.evaluate.precision import ClassMatches, Detections, ap_difference, ap_measure, match
from gossamer.evaluate.task import BatchCache, forward, spans

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_BOXES = 300
"""Boxes of one picture that are scored, the surest ones."""
AP50 = slice(0, 1)


@dataclass(frozen=True)
class DetectionResults:
    """What was found on each picture, how it matches the truth, and each picture's mean loss in nats."""

    found: tuple[Detections, ...]
    matches: tuple[ClassMatches, ...]
    loss: np.ndarray


@dataclass(frozen=True)
class DetectionTask:
    """AP and AP50 of an OWL-ViT or OWLv2 detector asked for every class on every picture. An example is a picture.

    Positions are (box, query) pairs with two classes, absent and present; a box belongs to the patch that predicts
    it. In `Batch.labels` (pictures, boxes, queries) a pair is 0 if nothing of that class is at the patch, and k > 0
    where object k - 1 of the picture lies there: of the patches that an object covers, only the surest must answer.
    """

    examples: tuple[DetectionExample, ...]
    classes: tuple[str, ...]
    queries: dict[str, Tensor]
    processor: Any
    grid: int
    square: bool
    protocol: dict[str, Any]
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    batch_size: int = 8
    name: str = "detection"
    metric: str = "ap50"
    higher_is_better: bool = True
    _cache: BatchCache = field(default_factory=BatchCache, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.examples)

    def subset(self, indices: Sequence[int]) -> DetectionTask:
        """The task on these pictures."""
        return DetectionTask(
            tuple(self.examples[i] for i in indices), self.classes, self.queries, self.processor, self.grid,
            self.square, {**self.protocol, "n": len(indices)}, self.groups, self.batch_size,
        )  # fmt: skip

    def batches(self, size: int) -> Iterator[Batch]:
        """Pictures in order, each with all queries."""
        for indices in spans(len(self), size):
            yield self._cache.get(indices, self._encode)

    def _encode(self, indices: tuple[int, ...]) -> Batch:
        import torch

        rows = [self.examples[i] for i in indices]
        pixels = self.processor.image_processor([row.image.load() for row in rows], return_tensors="pt")["pixel_values"]
        text = {key: value.repeat(len(rows), 1) for key, value in self.queries.items()}
        labels = torch.stack([self._covered(row) for row in rows])
        return Batch({**text, "pixel_values": pixels}, labels, indices)

    def _scale(self, example: DetectionExample) -> tuple[float, float]:
        return unit_square(self.square, example.width, example.height)

    def _covered(self, example: DetectionExample) -> Tensor:
        """(boxes, queries) int16: the object at each patch, of several of one class the one whose middle is nearest."""
        import torch

        labels = np.zeros((self.grid * self.grid, len(self.classes)), dtype=np.int16)
        nearest = np.full(labels.shape, np.inf)
        width, height = self._scale(example)
        middle = (np.arange(self.grid) + 0.5) / self.grid
        px, py = np.tile(middle, self.grid), np.repeat(middle, self.grid)
        for number, (box, label) in enumerate(zip(example.boxes, example.labels, strict=True), 1):
            x0, y0, x1, y1 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
            far = np.maximum(abs(px - (x0 + x1) / 2), abs(py - (y0 + y1) / 2))
            at = (px >= x0) & (px <= x1) & (py >= y0) & (py <= y1)
            at[far.argmin()] = True
            at &= far < nearest[:, label]
            labels[at, label] = number
            nearest[at, label] = far[at]
        return torch.from_numpy(labels)

    def log_probs(self, output: Any, batch: Batch) -> Tensor:
        """(pictures x boxes x queries, 2): log-probabilities that the class is absent, and present."""
        import torch

        logits = output.logits.float().reshape(-1)
        return torch.nn.functional.logsigmoid(torch.stack([-logits, logits], -1))

    def owners(self, batch: Batch) -> Tensor:
        """The picture of each (box, query) pair."""
        import torch

        return torch.tensor(batch.indices).repeat_interleave(batch.labels[0].numel())

    def losses(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy of each pair; 0 at the patches of an object that are not its surest one."""
        import torch

        labels = batch.labels.to(log_probs.device).long()
        most = int(labels.max()) + 1
        rows = torch.arange(len(labels), device=labels.device)[:, None, None]
        flat = labels.reshape(-1)
        keys = (rows * most + labels).reshape(-1)
        present = log_probs[:, 1]
        best = present.new_full((len(labels) * most,), -torch.inf).scatter_reduce(0, keys, present, "amax")
        answers = torch.where(present == best[keys], -present, torch.zeros_like(present))
        return torch.where(flat == 0, -log_probs[:, 0], answers)

    def results(self, model: nn.Module, progress: Progress = SILENT) -> DetectionResults:
        """Looks at every picture once."""
        import torch

        found: list[Detections] = []
        loss: list[float] = []
        for batch in progress.track(self.batches(self.batch_size), "pictures", -(-len(self) // self.batch_size)):
            output = forward(model, batch)
            losses = self.losses(self.log_probs(output, batch), batch).reshape(batch.size, -1)
            loss += losses.double().mean(1).tolist()
            scores, labels = output.logits.float().sigmoid().max(-1)
            for row, i in enumerate(batch.indices):
                order = torch.argsort(scores[row], descending=True, stable=True)[:MOST_BOXES]
                corners = corners_of(output.pred_boxes[row][order], self._scale(self.examples[i]))
                found.append(
                    Detections(corners, scores[row][order].double().cpu().numpy(), labels[row][order].cpu().numpy())
                )
        return DetectionResults(tuple(found), match(self.examples, found, len(self.classes)), np.array(loss))

    def summarise(self, results: DetectionResults) -> dict[str, Measure]:
        """`ap50` and `ap` (0.50 to 0.95), 0 to 1; `ap50_GROUP` for groups of classes; `loss` in nats a pair."""
        figures = {"ap50": ap_measure(results.matches, AP50), "ap": ap_measure(results.matches)}
        for name, members in self.groups.items():
            part = [results.matches[c] for c in members]
            if any(one.truths.any() for one in part):
                figures[f"ap50_{name}"] = ap_measure(part, AP50)
        figures["loss"] = bootstrap_mean(results.loss, over="images")
        return figures

    def difference(self, before: DetectionResults, after: DetectionResults) -> Measure:
        """AP50 after minus before, paired over pictures."""
        return ap_difference(before.matches, after.matches, AP50)

    def measure(self, model: nn.Module, progress: Progress = SILENT) -> dict[str, Measure]:
        """The figures of one model."""
        return self.summarise(self.results(model, progress))


def check_detects(opened: Any) -> None:
    """Raises `DataError` unless the model finds things by text."""
    if getattr(opened.config, "model_type", "") not in ("owlv2", "owlvit") or opened.processor is None:
        raise DataError(
            f"{opened.source} finds nothing by text: detection needs an OWL-ViT or OWLv2 model with a processor"
        )


def pads_to_squares(opened: Any) -> bool:
    """Whether pictures are padded to squares, as OWLv2 does; OWL-ViT stretches them."""
    return bool(opened.config.model_type == "owlv2")


def query_inputs(opened: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """The model's inputs for what is looked for, a row for each text."""
    longest = opened.config.text_config.max_position_embeddings
    found = opened.processor.tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
    )
    return {key: found[key] for key in ("input_ids", "attention_mask")}


def unit_square(square: bool, width: int, height: int) -> tuple[float, float]:
    """Pixels of a picture that the model's unit square measures, across and down (see `pads_to_squares`)."""
    longest = float(max(width, height))
    return (longest, longest) if square else (float(width), float(height))


def corners_of(boxes: Tensor, scale: tuple[float, float]) -> np.ndarray:
    """Boxes (n, 4) of middle, width and height in the unit square as corners x0, y0, x1, y1 in pixels."""
    middle, size = np.split(boxes.double().cpu().numpy(), 2, axis=1)
    corners: np.ndarray = np.concatenate([middle - size / 2, middle + size / 2], axis=1) * np.array(scale * 2)
    return corners


def open_detection(
    data: str,
    opened: Any,
    *,
    split: str | None = None,
    limit: int | None = None,
    images: str | None = None,
    skip_missing: bool = False,
    prompt: str | None = None,
    batch_size: int = 8,
) -> DetectionTask:
    """The detection task of a data set for an OWL-ViT or OWLv2 model.

    `images`, `skip_missing`: see `read_detection`. `prompt`: the query of a class, with `{name}` in it (default: the
    class name for the built-in scenes, else OWL's `a photo of a {name}`). Raises `DataError` for unreadable data, a
    set without any box, or another kind of model.
    """
    check_detects(opened)
    vision = opened.config.vision_config
    examples, classes, provenance = read_detection(
        data, split=split, limit=limit, images=images, skip_missing=skip_missing, size=vision.image_size
    )
    if not any(example.boxes for example in examples):
        raise DataError(f"{data} has no boxes: detection needs pictures with objects on them")
    template = prompt or ("{name}" if data == "scenes" else "a photo of a {name}")
    if "{name}" not in template:
        raise DataError(f"prompt {template!r} has no place for the class: write {{name}} into it")
    queries = query_inputs(opened, [template.replace("{name}", name) for name in classes])
    protocol = {
        **provenance,
        "classes": len(classes),
        "prompt": template,
        "boxes": f"one class a box, the surest {MOST_BOXES}, no suppression",
        "scoring": "COCO (pycocotools), all areas, 100 detections a class and image",
    }
    return DetectionTask(
        tuple(examples), classes, queries, opened.processor,
        vision.image_size // vision.patch_size, pads_to_squares(opened), protocol, _groups(data, classes), batch_size,
    )  # fmt: skip


def _groups(data: str, classes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Of the scenes, the pairs that training pictures contain and those that they never do."""
    if data != "scenes":
        return {}
    from gossamer.data.scenes import HELD_OUT_PAIRS, QUERY

    held = {QUERY.format(colour=colour, shape=shape) for colour, shape in HELD_OUT_PAIRS}
    return {
        "seen": tuple(i for i, name in enumerate(classes) if name not in held),
        "held_out": tuple(i for i, name in enumerate(classes) if name in held),
    }
