"""Decoding that leaves early: tokens that the first blocks are sure of are taken from them.

This is lossy: such a token may be another one than the whole model's. How sure is sure is a threshold, for which
`calibrate` finds a value. (`self:N` of `operate.speculate` drafts by the same first blocks and loses nothing.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.errors import SettingError
from gossamer.engine.decode import Event, Request, Row, check_numbers, check_writes
from gossamer.engine.stepping import Stepper, StepperOf
from gossamer.operate.speculate.self_draft import first_blocks

WAITING = 32
"""No more tokens than that wait for the whole model."""


@dataclass
class Left:
    """What came of it in one answer, as it is written: `early` tokens of the first blocks, and `passes` of the whole
    model after the one over the prompt, each of which gave a token."""

    early: int = 0
    passes: int = 0


@dataclass(frozen=True)
class EarlyExit:
    """A token is taken after the first `blocks` language blocks, straight from the last norm and head, where the two
    likeliest ones there differ by `threshold` in probability, in [0, 1] (the softmax response of CALM, Schuster et al.
    2022, arXiv 2207.07061).

    The whole model reads the tokens that it was not asked for together, in its next pass: its past is always that of
    the text as it stands, and nothing in it is guessed, as states copied from an earlier block would be.
    """

    blocks: int
    threshold: float

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise SettingError(f"a threshold of {self.threshold} is not possible: give 0 to 1")

    @torch.inference_mode()
    def decode(
        self,
        model: nn.Module,
        request: Request,
        tokenizer: Any = None,
        left: Left | None = None,
        stepper_of: StepperOf = Stepper,
    ) -> Iterator[Event]:
        """Continues a request, an event for each token; `left` is counted up as it goes, `stepper_of` says what reads
        the tokens. Tokens are drawn as the request says, whoever gives their law.

        Raises what `engine.decode` does, and what `first_blocks` does for a number of blocks that the model lacks.
        """
        count = Left() if left is None else left
        check_writes(model)
        shorter = first_blocks(model, self.blocks)
        stepper = stepper_of(model)
        row = Row(0, request, model, tokenizer, stepper.endless)
        logits = stepper.prefill([request.inputs])
        check_numbers(model, logits)
        yield row.take(logits[0])
        if row.finished is not None:
            return
        first = stepper_of(shorter)
        first.prefill([request.inputs])
        waiting: list[int] = []  # what the whole model has not read
        while row.finished is None:
            waiting.append(row.token)
            logits = first.resume(torch.tensor([[row.token]]))
            check_numbers(model, logits)
            if len(waiting) < WAITING and float(margins(logits)[0]) >= self.threshold:
                count.early += 1
            else:
                logits = stepper.resume(torch.tensor([waiting]))
                check_numbers(model, logits)
                count.passes += 1
                waiting = []
            yield row.take(logits[0])


def margins(logits: Tensor) -> Tensor:
    """By how much the likeliest token's probability is above the next one's: logits, or log-probabilities, (…,
    vocabulary) → (…)."""
    best = logits.float().softmax(-1).topk(2).values
    return best[..., 0] - best[..., 1]
