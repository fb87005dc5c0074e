"""What sequences that left had read, for prompts that begin alike: a conversation's next turn, a common preamble."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.core.errors import GossamerError, ModelError
from gossamer.engine.stepping import Inputs, StepperOf, Steps
from gossamer.operate.cache.conversation import OF_IMAGES, TOKENWISE, image_token

LEAST = 16
"""A beginning of fewer tokens is sooner read again than copied."""


@dataclass(frozen=True, eq=False)
class _Kept:
    tokens: np.ndarray
    images: dict[str, Tensor]
    steps: Steps

    @cached_property
    def bytes(self) -> int:
        """Bytes of the past and the images."""
        return self.steps.cache_bytes + sum(image.nbytes for image in self.images.values())

    def common(self, tokens: np.ndarray) -> int:
        """How many tokens both begin with."""
        length = min(len(self.tokens), len(tokens))
        other = self.tokens[:length] != tokens[:length]
        return int(other.argmax()) if other.any() else length

    def shows(self, images: dict[str, Tensor]) -> bool:
        """Whether it saw exactly these images."""
        return images.keys() == self.images.keys() and all(
            torch.equal(images[name], self.images[name]) for name in images
        )


class PrefixStore:
    """Keeps the pasts of sequences in at most `limit` bytes, those used longest ago leave first.

    A past serves up to the first token that differs; images must all be the same, bit by bit, and a common token must
    stand behind them. What is read after it is read as it would be anew, up to the rounding of sums that are split in
    another way. `off` says why nothing is kept, if so (see `cannot_go_on`); without room nothing is.
    """

    def __init__(self, model: nn.Module, limit: int, off: str = "") -> None:
        self._config: Any = model.config
        self.limit, self.off = limit, off or "not wanted" * (not limit)
        self._kept: list[_Kept] = []

    @property
    def bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(kept.bytes for kept in self._kept)

    def find(self, inputs: Inputs) -> tuple[Steps, int] | None:
        """A copy of the kept sequence that has read most of this prompt, led back to what they share, and how many
        tokens that are: at least `LEAST`, and one is left to read. None if there is no such sequence."""
        if self.off or (known := self._known(inputs)) is None:
            return None
        tokens, text_from, images = known
        fitting = [kept for kept in self._kept if kept.shows(images)]
        best = max(fitting, key=lambda kept: kept.common(tokens), default=None)
        shared = min(best.common(tokens), len(tokens) - 1) if best else 0
        if best is None or shared < LEAST or shared <= text_from:
            return None
        self._kept.remove(best)
        self._kept.append(best)
        steps = best.steps.taken(0)
        try:
            if back := len(best.tokens) - shared:
                steps.rewind(back)
        except ModelError:  # a window that has moved on
            return None
        return steps, shared

    def keep(self, inputs: Inputs, tokens: Sequence[int], steps: Steps, row: int) -> None:
        """Copies the sequence at `row`, which has read `tokens`; of others that begin it, nothing need stay."""
        if self.off or len(tokens) < LEAST or (known := self._known(inputs)) is None:
            return
        kept = _Kept(np.array(tokens), known[2], steps.taken(row))
        if kept.bytes > self.limit:
            return
        others = [
            other
            for other in self._kept
            if kept.common(other.tokens) < len(other.tokens) or not other.shows(kept.images)
        ]
        self._kept = [*others, kept]
        while self.bytes > self.limit:
            self._kept.pop(0)

    def _known(self, inputs: Inputs) -> tuple[np.ndarray, int, dict[str, Tensor]] | None:
        """Tokens of the prompt, the place of the first text after images, and these; None where more counts."""
        token = image_token(self._config)
        images = {name: value for name, value in inputs.items() if name in OF_IMAGES}
        hidden = "attention_mask" in inputs and not bool(inputs["attention_mask"].all())
        if hidden or inputs.keys() - {*TOKENWISE, *images} or (images and token < 0):
            return None
        tokens = inputs["input_ids"][0].numpy()
        places = np.flatnonzero(tokens == token)
        return tokens, int(places[-1]) + 1 if len(places) else 0, images


def cannot_go_on(model: nn.Module, stepper_of: StepperOf) -> str:
    """Why a prompt cannot be read from the middle on, behind what a copy of another sequence has read; empty if it
    can."""
    config: Any = model.config
    if getattr(config.get_text_config(decoder=True), "use_bidirectional_attention", None):
        return "early tokens of this model see later ones"
    try:
        with torch.inference_mode():
            steps = stepper_of(model)
            steps.prefill([{"input_ids": torch.zeros(1, 4, dtype=torch.long)}])
            one = steps.taken(0)
            one.rewind(2)
            one.resume(torch.zeros(1, 2, dtype=torch.long))
    except GossamerError as error:
        return str(error)
    return ""
