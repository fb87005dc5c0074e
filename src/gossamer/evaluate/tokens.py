"""What text and answer tasks share: next-token positions, tokenizers, vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""The label of a token that does not count."""


def next_token_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities (positions, vocabulary), float32, of the tokens whose label counts.

    `logits` (rows, length or its last part, vocabulary) at place t predict the label at t + 1; `labels`
    (rows, length) are `IGNORE` where nothing counts. Positions run row by row.
    """
    labels = labels[:, -logits.shape[1] :].to(logits.device)
    return logits[:, :-1][labels[:, 1:] != IGNORE].float().log_softmax(-1)


def counted(labels: Tensor) -> Tensor:
    """The labels that count, in the order of `next_token_log_probs`: (positions,)."""
    right = labels[:, 1:]
    return right[right != IGNORE]


def rows_counted(labels: Tensor) -> Tensor:
    """The row that each counted position lies in: (positions,)."""
    return (labels[:, 1:] != IGNORE).nonzero()[:, 0]


def picked_losses(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (positions,) of `targets` (positions,) under `log_probs` (positions, classes)."""
    return -log_probs.gather(1, targets.to(log_probs.device)[:, None])[:, 0]


def tokenizer_of(opened: Any) -> Any:
    """The model's tokenizer. Raises `DataError` if it has none."""
    tokenizer = opened.tokenizer or getattr(opened.processor, "tokenizer", None)
    if tokenizer is None:
        raise DataError(f"{opened.source} has no tokenizer: put tokenizer.json beside its weights")
    return tokenizer


def vocabulary_of(opened: Any) -> int:
    """Rows of the model's input embedding: token ids must lie below it."""
    size = getattr(opened.config.get_text_config(), "vocab_size", None)
    if size is None:
        raise DataError(f"{opened.source} states no vocabulary size: a language model is needed for this task")
    return int(size)


def check_vocabulary(ids: Sequence[int], opened: Any) -> None:
    """Raises `DataError` if an id does not fit the model's vocabulary: the tokenizer is another model's."""
    size = vocabulary_of(opened)
    worst = max(ids, default=0)
    if worst >= size:
        raise DataError(
            f"wrong tokenizer: token id {worst} does not fit the {size} entries of {opened.source}; "
            "use the tokenizer that the model was trained with"
        )


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids without special tokens."""
    try:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    except TypeError:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids)


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer begins a text with its begin-of-text token by itself."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return False
    return list(tokenizer("a", add_special_tokens=True)["input_ids"])[:1] == [bos]
