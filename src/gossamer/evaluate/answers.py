"""When is an answer right: normalised as VQA-RAD's and VQA's scorers do it."""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans({mark: " " for mark in string.punctuation if mark not in "-'"} | {"'": ""})


def normalised(answer: str) -> str:
    """Lower case, punctuation (inner hyphens apart) and articles removed, single spaces.

    `The left-sided mass.` → `left-sided mass`. An answer that is nothing but an article or punctuation stays as it
    is in lower case, so that it equals itself.
    """
    text = answer.lower().strip()
    words = _ARTICLES.sub(" ", text.translate(_PUNCTUATION)).split()
    return " ".join(word for word in (w.strip("-") for w in words) if word) or text


def is_right(given: str, truth: str) -> bool:
    """Exact match after normalisation."""
    return normalised(given) == normalised(truth)


def recall(given: str, truth: str) -> float:
    """The share of the true answer's words that the given one contains, 0 to 1 (LLaVA-Med's figure for open ones)."""
    wanted, have = Counter(normalised(truth).split()), Counter(normalised(given).split())
    return sum((wanted & have).values()) / max(1, wanted.total())
