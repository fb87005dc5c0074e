"""The integer model as a whole: its stacks, how they are wired, where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gossamer.accelerator.golden import tensors
from gossamer.accelerator.golden.arithmetic import Ints
from gossamer.accelerator.golden.tensors import Tally
from gossamer.accelerator.integer import Stack
from gossamer.accelerator.wiring import Wiring, patches_of


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """Stacks by name. `source` and `fingerprint` are those of the model that was quantised."""

    stacks: dict[str, Stack]
    wiring: Wiring
    source: str
    fingerprint: str

    def run(self, example: Mapping[str, Tensor], depth: int, tally: Tally | None = None) -> Ints:
        """Logits of one example, (S, V) or (V,), 16 bits, by golden arithmetic; `depth` is the engine's. Without a head
        it is the last norm's rows, 8 bits.

        The example holds what the model reads: `input_ids` (S,), `pixel_values` (I, channels, H, W).
        """
        wiring, seen = self.wiring, None
        if wiring.vision is not None and "pixel_values" in example:
            stack = self.stacks[wiring.vision]
            patches = self.patches(example["pixel_values"])
            seen = np.concatenate(
                [tensors.run(stack, tensors.patch_rows(stack, image), depth, tally=tally) for image in patches]
            )
        if wiring.text is not None:
            stack = self.stacks[wiring.text]
            tokens = example["input_ids"].numpy()
            rows = tensors.look_up(stack, tokens)
            if seen is not None:
                rows[tokens == wiring.image_token] = seen
            seen = tensors.run(stack, rows, depth, tally=tally)
        if seen is None:
            raise AssertionError("neither tokens nor pixels")
        return seen[0] if wiring.counts == "first" else seen

    def patches(self, pixels: Tensor) -> NDArray[np.int8]:
        """8-bit patches (I, P, K) of pixels (I, channels, H, W), as the host hands them to the engine."""
        stack = self.stacks[self.wiring.vision or ""]
        rows = patches_of(pixels.double(), self.wiring.side).numpy() / stack.input_scale
        return np.clip(np.floor(rows + 0.5), -128, 127).astype(np.int8)

    @property
    def scale(self) -> float:
        """The real value of one step of what `run` returns."""
        stack = self.stacks[self.wiring.text or self.wiring.vision or ""]
        return stack.notes["output_scale"] if stack.head is None else stack.logit_scale
