"""Perplexity of a language model on a text, with the windows that it is read in stated."""

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
from gossamer.data.text import read_text
from gossamer.evaluate import tokens
from gossamer.evaluate.intervals import bootstrap_ratio, paired_ratio
from gossamer.evaluate.task import BatchCache, forward, spans

if TYPE_CHECKING:
    from torch import Tensor, nn

LONGEST = 512
"""The context where none is asked for, unless the model has fewer positions."""


@dataclass(frozen=True)
class Window:
    """Tokens that are read together; the last `new` of them count."""

    ids: tuple[int, ...]
    new: int


@dataclass(frozen=True)
class TextResults:
    """Summed loss in nats and counted tokens of each window: (windows,) float64 and int64."""

    loss: NDArray[np.float64]
    count: NDArray[np.int64]


@dataclass(frozen=True)
class TextTask:
    """Perplexity: exp of the mean loss over all counted tokens. An example is a window."""

    windows: tuple[Window, ...]
    protocol: dict[str, Any]
    batch_size: int = 8
    name: str = "text"
    metric: str = "perplexity"
    higher_is_better: bool = False
    _cache: BatchCache = field(default_factory=BatchCache, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.windows)

    def subset(self, indices: Sequence[int]) -> TextTask:
        """The task on these windows."""
        windows = tuple(self.windows[i] for i in indices)
        counts = {"n": len(windows), "scored_tokens": sum(w.new for w in windows)}
        return TextTask(windows, {**self.protocol, **counts}, self.batch_size)

    def batches(self, size: int) -> Iterator[Batch]:
        """Windows in order. A batch of unequal windows is padded on the right, where a causal model never looks."""
        for indices in spans(len(self), size):
            yield self._cache.get(indices, self._encode)

    def _encode(self, indices: tuple[int, ...]) -> Batch:
        import torch

        rows = [self.windows[i] for i in indices]
        length = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, tokens.IGNORE)
        for r, row in enumerate(rows):
            n = len(row.ids)
            ids[r, :n] = torch.tensor(row.ids)
            mask[r, :n] = 1
            labels[r, n - row.new : n] = ids[r, n - row.new : n]
        return Batch({"input_ids": ids, "attention_mask": mask}, labels, indices)

    def log_probs(self, output: Any, batch: Batch) -> Tensor:
        """(counted tokens, vocabulary), window by window."""
        return tokens.next_token_log_probs(output.logits, batch.labels)

    def owners(self, batch: Batch) -> Tensor:
        """The window of each counted token."""
        import torch

        return torch.tensor(batch.indices)[tokens.rows_counted(batch.labels)]

    def losses(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """Loss of each counted token in nats."""
        return tokens.picked_losses(log_probs, tokens.counted(batch.labels))

    def results(self, model: nn.Module, progress: Progress = SILENT) -> TextResults:
        """Reads all windows once."""
        loss, count = np.zeros(len(self)), np.zeros(len(self), dtype=np.int64)
        total = -(-len(self) // self.batch_size)
        for batch in progress.track(self.batches(self.batch_size), "perplexity", total):
            found = self.losses(self.log_probs(forward(model, batch, use_cache=False), batch), batch)
            owners = self.owners(batch).numpy()
            np.add.at(loss, owners, found.double().cpu().numpy())
            np.add.at(count, owners, 1)
        return TextResults(loss, count)

    def summarise(self, results: TextResults) -> dict[str, Measure]:
        """`perplexity` and `loss` (nats per token), both with a bootstrap over windows."""
        return {
            "perplexity": bootstrap_ratio(results.loss, results.count, np.exp, over="windows"),
            "loss": bootstrap_ratio(results.loss, results.count, over="windows"),
        }

    def difference(self, before: TextResults, after: TextResults) -> Measure:
        """Perplexity after minus before, paired over windows."""
        return paired_ratio((before.loss, before.count), (after.loss, after.count), np.exp, over="windows")

    def measure(self, model: nn.Module, progress: Progress = SILENT) -> dict[str, Measure]:
        """The figures of one model."""
        return self.summarise(self.results(model, progress))


def open_text(
    data: str,
    opened: Any,
    *,
    split: str | None = None,
    limit: int | None = None,
    context: int | None = None,
    stride: int | None = None,
    bos: bool | None = None,
    batch_size: int = 8,
) -> TextTask:
    """The text task of a file or built-in text for a model.

    `context`: tokens read together, begin-of-text token included (default: the model's positions, at most 512).
    `stride`: tokens from one window's start to the next (default: all text tokens of a window, so none is read
    twice); with a smaller one, only tokens not yet counted count. `bos`: whether every window begins with the
    begin-of-text token, which itself never counts (default: as the tokenizer does it). Without it, a document's
    first token is given, and so is each window's where windows do not overlap. `limit`: the first windows only.

    Raises `DataError` for an unreadable text, a tokenizer that does not fit, or an impossible setting.
    """
    documents, provenance = read_text(data, split=split)
    tokenizer = tokens.tokenizer_of(opened)
    positions = getattr(opened.config.get_text_config(), "max_position_embeddings", None)
    context = context if context is not None else min(positions or LONGEST, LONGEST)
    begin = tokens.adds_bos(tokenizer) if bos is None else bos
    prefix = _prefix(tokenizer, opened.source) if begin else ()
    room = context - len(prefix)
    if room < 2 or (positions is not None and context > positions):
        most = positions or "any number of"
        raise DataError(f"context {context} is not possible: {opened.source} takes 3 to {most} tokens")
    stride = room if stride is None else stride
    if not 1 <= stride <= room:
        raise DataError(f"stride {stride} is not possible: with context {context} it must be 1 to {room}")
    windows: list[Window] = []
    total = 0
    for document in documents:
        ids = tokens.encode(tokenizer, document.text)
        tokens.check_vocabulary(ids, opened)
        total += len(ids)
        windows += _cut(ids, room, stride, prefix)
        if limit is not None and len(windows) >= limit:
            break
    windows = windows[:limit]
    if not windows:
        raise DataError(f"{data} is too short: at least two tokens are needed")
    protocol = {
        **provenance,
        "documents": provenance["n"],
        "n": len(windows),
        "context_tokens": context,
        "stride_tokens": stride,
        "begin_token": bool(prefix),
        "scored_tokens": sum(w.new for w in windows),
        "last_window": "kept, shorter",
    }
    return TextTask(tuple(windows), protocol, batch_size)


def _prefix(tokenizer: Any, source: str) -> tuple[int, ...]:
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        raise DataError(f"the tokenizer of {source} has no begin-of-text token: leave bos out")
    return (int(bos),)


def _cut(ids: list[int], room: int, stride: int, prefix: tuple[int, ...]) -> Iterator[Window]:
    """The windows of one document; those with no token to count are left out."""
    given = 0 if prefix else 1  # a window's first token has nothing before it
    done = 0
    for start in range(0, len(ids), stride):
        end = min(start + room, len(ids))
        new = end - max(done, start + given)
        if new > 0:
            yield Window((*prefix, *ids[start:end]), new)
        done = end
        if end == len(ids):
            return
