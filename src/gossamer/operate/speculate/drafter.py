"""What drafting is: guesses at the next tokens of one answer, with the laws that they were drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gossamer.engine.sampling import Sampler
from gossamer.engine.stepping import Inputs, Stepper, StepperOf


@dataclass(frozen=True)
class Drafts:
    """K drafts of L tokens: `tokens` (K, L), drawn independently, each from its row of `laws` (K, L, vocabulary),
    float64, which are equal where drafts have been equal so far."""

    tokens: Tensor
    laws: Tensor

    @classmethod
    def none(cls, size: int) -> "Drafts":
        """One draft of no tokens, over a vocabulary of `size`."""
        return cls(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, size, dtype=torch.float64))


class Drafting(Protocol):
    """The drafts of one answer, as it grows."""

    def propose(self, fresh: Sequence[int], length: int, count: int) -> Drafts:
        """`count` drafts of what follows, of at most `length` tokens (it may have fewer, or none).

        `fresh` are the tokens that have been written since the last proposal, at least one.
        """
        ...


class Drafter(Protocol):
    """A way to draft."""

    @property
    def certain(self) -> bool:
        """Whether its drafts are all the same, so that one is all that is of use."""
        ...

    def begin(
        self, target: nn.Module, inputs: Inputs, sampler: Sampler, size: int, stepper_of: StepperOf = Stepper
    ) -> Drafting:
        """Drafts of what `target` writes after a prompt, from its `inputs` and before the first token.

        `sampler` is the answer's: its settings and penalties are the drafts' too. `size` is that of the target's
        vocabulary, `stepper_of` what reads for the target. Raises `ModelError` if these models cannot draft.
        """
        ...
