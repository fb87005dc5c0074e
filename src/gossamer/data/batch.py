"""What a model is fed and what is expected of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass.

    `inputs`: keyword arguments of the model (`input_ids`, `attention_mask`, `pixel_values`, …).
    `labels`: what a task's loss compares with; its form is the task's own (token ids with -100 for positions that do
    not count, class numbers, or an empty tensor where targets are kept elsewhere).
    `indices`: the numbers of the examples in their task, one per row.
    """

    inputs: dict[str, "Tensor"]
    labels: "Tensor"
    indices: tuple[int, ...]

    @property
    def size(self) -> int:
        """Examples in the batch."""
        return len(self.indices)
