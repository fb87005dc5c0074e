"""Logits of single examples as a torch module, so that every task judges integer models as it does any other."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.accelerator.quantize.model import Example


class AsModule(nn.Module):
    """`logits_of` one example, for padded batches: rows are run one by one, without their padding.

    Where prompts hold images, every row has as many. Logits at padding are zero.
    """

    def __init__(self, logits_of: Callable[[Example], Tensor]) -> None:
        super().__init__()
        self._logits_of = logits_of
        self.register_parameter("place", nn.Parameter(torch.zeros(()), requires_grad=False))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **_: Any,
    ) -> SimpleNamespace:
        """`logits` (B, S, V), or (B, V) of models that give one row.

        Raises `ValueError` for masks other than of padding.
        """
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("only padding can be masked")
        given = input_ids if input_ids is not None else pixel_values
        if given is None:
            raise ValueError("neither tokens nor pixels")
        rows = []
        for number in range(len(given)):
            example, real = {}, None
            if input_ids is not None:
                real = (
                    attention_mask[number].bool()
                    if attention_mask is not None
                    else torch.ones_like(input_ids[number], dtype=torch.bool)
                )
                example["input_ids"] = input_ids[number][real]
            if pixel_values is not None:
                images = len(pixel_values) // len(given)
                example["pixel_values"] = pixel_values[number * images : (number + 1) * images]
            logits = self._logits_of(example).float()
            if real is not None and logits.ndim == 2:
                spread = logits.new_zeros(len(real), logits.shape[1])
                spread[real] = logits
                logits = spread
            rows.append(logits)
        return SimpleNamespace(logits=torch.stack(rows))
