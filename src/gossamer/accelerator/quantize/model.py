"""The float model as a whole: its stacks and how they are wired."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.accelerator.quantize.floating import Stack
from gossamer.accelerator.quantize.forward import Look, forward, look_up, patch_rows, unchanged
from gossamer.accelerator.wiring import Wiring, patches_of

Example = Mapping[str, Tensor]
"""One example: `input_ids` (S,), `pixel_values` (I, channels, H, W), what the model reads of both."""


@dataclass(frozen=True, eq=False)
class FloatModel:
    """Stacks by name."""

    stacks: dict[str, Stack]
    wiring: Wiring

    def __call__(self, example: Example, looks: Mapping[str, Look] | None = None) -> Tensor:
        """Logits of one example, (S, V) or (V,). `looks` by stack see every point (see `forward`)."""
        looks, wiring = looks or {}, self.wiring
        seen = None
        if wiring.vision is not None and "pixel_values" in example:
            stack, look = self.stacks[wiring.vision], looks.get(wiring.vision, unchanged)
            rows = patch_rows(stack, patches_of(example["pixel_values"].float(), wiring.side), look)
            seen = forward(stack, rows, look).flatten(0, 1)
        if wiring.text is not None:
            stack, look = self.stacks[wiring.text], looks.get(wiring.text, unchanged)
            rows = look_up(stack, example["input_ids"])
            if seen is not None:
                rows = rows.masked_scatter(torch.eq(example["input_ids"], wiring.image_token or 0)[:, None], seen)
            seen = forward(stack, rows, look)
        if seen is None:
            raise AssertionError("neither tokens nor pixels")
        return seen[0] if wiring.counts == "first" else seen


def without_gradients(model: FloatModel, example: Example, looks: Mapping[str, Look] | None = None) -> Tensor:
    """`model(example)` in inference mode."""
    with torch.inference_mode():
        return model(example, looks)
