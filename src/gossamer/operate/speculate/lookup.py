"""Drafts from what has been said: the continuation of the last words where they stood before (prompt lookup)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from gossamer.core.errors import SettingError
from gossamer.engine.decode import prompt_ids
from gossamer.engine.sampling import Sampler
from gossamer.engine.stepping import Inputs, Stepper, StepperOf
from gossamer.operate.speculate.drafter import Drafts


@dataclass(frozen=True)
class PromptLookup:
    """Copies what followed the latest place where the last `ngram` tokens stood before, in prompt or answer; fewer, and
    at the least one, if so many stood nowhere (A. Saxena, prompt lookup decoding, 2023).

    A copy that reaches the end goes on with itself, as in LZ77. Costs next to nothing.
    """

    ngram: int = 3
    certain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise SettingError(f"ngram {self.ngram} is not possible: give 1 or more")

    def begin(
        self, target: nn.Module, inputs: Inputs, sampler: Sampler, size: int, stepper_of: StepperOf = Stepper
    ) -> "_Lookup":
        """See `Drafter`."""
        return _Lookup(self.ngram, prompt_ids(target, inputs), size)


class _Lookup:
    def __init__(self, ngram: int, prompt: Sequence[int], size: int) -> None:
        self._ngram, self._size = ngram, size
        self._text: list[int] = []
        self._follower: dict[tuple[int, ...], int] = {}
        self._read(prompt)

    def propose(self, fresh: Sequence[int], length: int, count: int) -> Drafts:
        """See `Drafting`."""
        self._read(fresh)
        ends = (tuple(self._text[-n:]) for n in range(min(self._ngram, len(self._text)), 0, -1))
        start = next((self._follower[end] for end in ends if end in self._follower), None)
        if start is None:
            return Drafts.none(self._size)
        copied = list(self._text[start : start + length])
        while len(copied) < length:
            copied.append(copied[len(copied) - (len(self._text) - start)])
        tokens = torch.tensor([copied])
        if int(tokens.max()) >= self._size:  # ids beyond the vocabulary, as of images, are never written
            return Drafts.none(self._size)
        return Drafts(tokens, torch.nn.functional.one_hot(tokens, self._size).double())

    def _read(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for n in range(1, min(self._ngram, len(self._text)) + 1):
                self._follower[tuple(self._text[-n:])] = len(self._text)
            self._text.append(token)
