"""Image classification: accuracy of a classifier with its own labels, or of CLIP asked with class names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gossamer.core.errors import DataError
from gossamer.core.outcome import Measure
from gossamer.core.progress import SILENT, Progress
from gossamer.data.batch import Batch
from gossamer.data.classification import LabelledImage, read_classification
from gossamer.evaluate import tokens
from gossamer.evaluate.intervals import DRAWS, bootstrap_mean, paired_mean, percentile, wilson
from gossamer.evaluate.task import BatchCache, forward, spans

if TYPE_CHECKING:
    from torch import Tensor, nn

PROMPT = "a photo of a {name}"
"""What CLIP is asked for a class where no other prompt is given."""


@dataclass(frozen=True)
class ClassificationResults:
    """Per picture: the class given, whether it is right, and the loss of the true one in nats."""

    predictions: NDArray[np.int64]
    correct: NDArray[np.bool_]
    loss: NDArray[np.float64]


@dataclass(frozen=True)
class ClassificationTask:
    """Top-1 accuracy. An example is a picture, and so is a position; `labels` are numbers among the model's classes."""

    examples: tuple[LabelledImage, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    prepare: Any
    queries: dict[str, Tensor]
    protocol: dict[str, Any]
    batch_size: int = 32
    name: str = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    _cache: BatchCache = field(default_factory=BatchCache, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.examples)

    def subset(self, indices: Sequence[int]) -> ClassificationTask:
        """The task on these pictures."""
        return ClassificationTask(
            tuple(self.examples[i] for i in indices), tuple(self.labels[i] for i in indices), self.names, self.prepare,
            self.queries, {**self.protocol, "n": len(indices)}, self.batch_size,
        )  # fmt: skip

    def batches(self, size: int) -> Iterator[Batch]:
        """Pictures in order; zero-shot, the class prompts go with each batch once."""
        for indices in spans(len(self), size):
            yield self._cache.get(indices, self._encode)

    def _encode(self, indices: tuple[int, ...]) -> Batch:
        import torch

        found = self.prepare([self.examples[i].image.load() for i in indices], return_tensors="pt")
        labels = torch.tensor([self.labels[i] for i in indices])
        return Batch({**self.queries, "pixel_values": found["pixel_values"]}, labels, indices)

    def log_probs(self, output: Any, batch: Batch) -> Tensor:
        """(pictures, classes)."""
        logits: Tensor = output.logits_per_image if self.queries else output.logits
        return logits.float().log_softmax(-1)

    def owners(self, batch: Batch) -> Tensor:
        """The picture of each position: itself."""
        import torch

        return torch.tensor(batch.indices)

    def losses(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """Loss of each picture's true class in nats."""
        return tokens.picked_losses(log_probs, batch.labels)

    def results(self, model: nn.Module, progress: Progress = SILENT) -> ClassificationResults:
        """Classifies every picture once."""
        given: list[int] = []
        loss: list[float] = []
        for batch in progress.track(self.batches(self.batch_size), "pictures", -(-len(self) // self.batch_size)):
            log_probs = self.log_probs(forward(model, batch), batch)
            given += log_probs.argmax(-1).tolist()
            loss += self.losses(log_probs, batch).double().tolist()
        predictions = np.array(given, dtype=np.int64)
        return ClassificationResults(predictions, predictions == np.array(self.labels), np.array(loss))

    def predictions(self, model: nn.Module, progress: Progress = SILENT) -> list[str]:
        """The names of the classes given."""
        return [self.names[i] for i in self.results(model, progress).predictions]

    def summarise(self, results: ClassificationResults) -> dict[str, Measure]:
        """`accuracy` (Wilson), `balanced_accuracy` (mean of the classes' own, bootstrapped within each class), both
        0 to 1; `loss` in nats."""
        return {
            "accuracy": wilson(int(results.correct.sum()), len(self)),
            "balanced_accuracy": _balanced(results.correct, np.array(self.labels)),
            "loss": bootstrap_mean(results.loss, over="images"),
        }

    def difference(self, before: ClassificationResults, after: ClassificationResults) -> Measure:
        """Accuracy after minus before, paired over pictures."""
        return paired_mean(before.correct, after.correct, over="images")

    def measure(self, model: nn.Module, progress: Progress = SILENT) -> dict[str, Measure]:
        """The figures of one model."""
        return self.summarise(self.results(model, progress))


def _balanced(correct: NDArray[np.bool_], labels: NDArray[np.int64], seed: int = 0) -> Measure:
    """Resampling a class's pictures makes its hits binomial, so the draws need no pictures."""
    classes, counts = np.unique(labels, return_counts=True)
    shares = np.array([correct[labels == c].mean() for c in classes])
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = (random.binomial(counts, shares, (DRAWS, len(classes))) / counts).mean(1)
    return percentile(float(shares.mean()), drawn, len(labels), "bootstrap over images within classes")


def open_classification(
    data: str,
    opened: Any,
    *,
    split: str | None = None,
    limit: int | None = None,
    prompt: str | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = 32,
) -> ClassificationTask:
    """The classification task of a data set for an image classifier, or zero-shot for a CLIP-type model.

    `names`: the classes' names in the order of the data's numbers (default: the data's own). A classifier's labels
    are matched by name, or by number where names or labels are mere numbers and there are no more than it has.
    `prompt`: what a CLIP-type model is asked, with `{name}` in it. Raises `DataError` for unreadable data, labels
    that do not fit the model's, or another kind of model.
    """
    if opened.processor is None:
        raise DataError(f"{opened.source} has no image processor: classification needs preprocessor_config.json")
    examples, classes, provenance = read_classification(data, split=split, limit=limit)
    if names is not None and len(names) != len(classes):
        raise DataError(f"{len(names)} class names were given for {data}, which has {len(classes)} classes")
    classes = tuple(names) if names is not None else classes
    prepare = getattr(opened.processor, "image_processor", opened.processor)
    protocol = {**provenance, "classes": len(classes)}
    if hasattr(opened.model, "get_text_features") and hasattr(opened.model, "get_image_features"):
        template = prompt or opened.defaults.get("prompt") or PROMPT
        if "{name}" not in template:
            raise DataError(f"prompt {template!r} has no place for the class: write {{name}} into it")
        queries = _queries(opened, [template.replace("{name}", name) for name in classes])
        labels, protocol = tuple(e.label for e in examples), {**protocol, "prompt": template}
    else:
        known = _own_labels(opened)
        numbers = _matched(classes, known, data, opened.source)
        queries, labels, classes = {}, tuple(numbers[e.label] for e in examples), known
    return ClassificationTask(tuple(examples), labels, classes, prepare, queries, protocol, batch_size)


def _queries(opened: Any, texts: list[str]) -> dict[str, Any]:
    """Token ids of the prompts, padded as the model was trained: SigLIP to its full length, CLIP to the longest."""
    family = getattr(opened.config, "model_type", "")
    text = opened.config.text_config
    padding = "max_length" if "siglip" in family else True
    found = opened.processor.tokenizer(
        texts, padding=padding, truncation=True, max_length=text.max_position_embeddings, return_tensors="pt"
    )
    keys = ("input_ids",) if "siglip" in family else ("input_ids", "attention_mask")
    return {key: found[key] for key in keys if key in found}


def _own_labels(opened: Any) -> tuple[str, ...]:
    """The names of the classifier's outputs. Raises `DataError` if the model is no image classifier."""
    if "ImageClassification" not in type(opened.model).__name__:
        raise DataError(
            f"{opened.source} classifies no images: classification needs an image classifier or a CLIP-type model"
        )
    return tuple(str(opened.config.id2label[i]) for i in range(opened.config.num_labels))


def _matched(classes: tuple[str, ...], known: tuple[str, ...], data: str, source: str) -> list[int]:
    """The model's number of each class of the data."""
    places = {name.strip().lower(): i for i, name in enumerate(known)}
    found = [places.get(name.strip().lower()) for name in classes]
    if all(place is not None for place in found):
        return [place for place in found if place is not None]
    unnamed = all(c.isdigit() for c in classes) or all(k.upper().startswith("LABEL_") for k in known)
    if unnamed and len(classes) <= len(known):
        return list(range(len(classes)))
    stranger = next(name for name, place in zip(classes, found, strict=True) if place is None)
    shown = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
    raise DataError(f"class {stranger!r} of {data} is none of the labels of {source} ({shown}): give names that match")
