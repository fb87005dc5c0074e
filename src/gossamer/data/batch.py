"""What a model is fed and what is expected of it."""

from collections.abc import Iterator
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

    def parts(self, rows: int) -> "Iterator[Batch]":
        """The batch in parts of so many examples. What is not laid out by example goes with every part."""
        for first in range(0, self.size, rows):
            part = slice(first, first + rows)
            inputs = {name: self._of(value, part) for name, value in self.inputs.items()}
            yield Batch(inputs, self._of(self.labels, part), self.indices[part])

    def _of(self, value: "Tensor", part: slice) -> "Tensor":
        return value[part] if value.dim() and len(value) == self.size else value
