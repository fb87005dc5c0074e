"""Drafts by a smaller model of the same tokenizer."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from gossamer.core.errors import DataError
from gossamer.engine.decode import prompt_ids
from gossamer.engine.forward import device_of, place_ids
from gossamer.engine.sampling import Sampler
from gossamer.engine.stepping import Inputs, Stepper, StepperOf
from gossamer.operate.speculate.follow import Follower


@dataclass(frozen=True, eq=False)
class DraftModel:
    """Drafts drawn from the laws of `model`, whose token ids mean what the target's do.

    `inputs` are what it is given as the prompt. By default that is the target's text alone, without the places of its
    images, so that a language model can draft for a vision-language model. `stepper_of` says what reads for it.
    """

    model: nn.Module
    inputs: Inputs | None = None
    stepper_of: StepperOf = Stepper
    certain: ClassVar[bool] = False

    def begin(
        self, target: nn.Module, inputs: Inputs, sampler: Sampler, size: int, stepper_of: StepperOf = Stepper
    ) -> Follower:
        """See `Drafter`."""
        seen = text_of(target, inputs) if self.inputs is None else self.inputs
        return Follower(self.model, seen, sampler, size, self.stepper_of)


def text_of(model: Any, inputs: Inputs) -> dict[str, torch.Tensor]:
    """The text of a prompt alone. Raises `DataError` if it has none."""
    places = place_ids(model.config)
    ids = [token for token in prompt_ids(model, inputs) if token not in places]
    if not ids:
        raise DataError("the prompt has images only: a draft model that sees none needs a text to continue")
    return {"input_ids": torch.tensor([ids], device=device_of(model))}
