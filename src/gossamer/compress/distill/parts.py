"""What a compressed weight is stored as."""

from dataclasses import dataclass

from torch import Tensor

from gossamer.core.errors import ModelError
from gossamer.models.low_rank import LowRank
from gossamer.models.packed import QuantizedTensor


@dataclass(frozen=True, eq=False)
class Parts:
    """A weight as a sum: `tensor`, on a grid, or `rest`, float32 (rows, columns), and `low_rank`.

    Zeros of the rest are pruned weights and stay zeros. Raises `ModelError` if there is both a tensor and a rest.
    """

    tensor: QuantizedTensor | None = None
    rest: Tensor | None = None
    low_rank: LowRank | None = None

    def __post_init__(self) -> None:
        if self.tensor is not None and self.rest is not None:
            raise ModelError("a weight has a part on a grid or a part of free values, not both")
