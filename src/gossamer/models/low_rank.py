"""A matrix of small rank beside a weight: what it is, and the bytes it takes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.core.errors import ModelError


@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix `left @ right`: `left` float16 (rows, rank), `right` float16 (rank, columns), all finite.

    Raises `ModelError` if the parts do not fit each other.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.dim() != 2 or self.right.dim() != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ModelError(
                f"factors of shapes {tuple(self.left.shape)} and {tuple(self.right.shape)} do not multiply"
            )
        for factor in (self.left, self.right):
            if factor.dtype != torch.float16 or not bool(torch.isfinite(factor).all()):
                raise ModelError("the factors of a low-rank matrix must be finite 16-bit floats")

    @property
    def rank(self) -> int:
        """How many columns `left` has."""
        return self.left.shape[1]

    @property
    def bytes(self) -> int:
        """Bytes of both factors."""
        return 2 * (self.left.numel() + self.right.numel())

    def to(self, device: "torch.device | str") -> "LowRank":
        """The same on another device."""
        return LowRank(self.left.to(device), self.right.to(device))

    def dense(self) -> Tensor:
        """The matrix, float32 (rows, columns)."""
        return self.left.float() @ self.right.float()

    def joined(self, other: "LowRank") -> "LowRank":
        """The sum of both, of both ranks together."""
        return LowRank(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right]))

    def to_state(self, prefix: str = "") -> dict[str, Tensor]:
        """Tensors for a safetensors file; keys start with `prefix`."""
        return {f"{prefix}left": self.left.contiguous(), f"{prefix}right": self.right.contiguous()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], prefix: str = "") -> "LowRank":
        """What `to_state` wrote. Raises `ModelError` if a part is missing or does not fit the other."""
        try:
            return cls(state[f"{prefix}left"], state[f"{prefix}right"])
        except KeyError as error:
            raise ModelError(
                f"stored factors {prefix!r} are incomplete: {error} is missing; write them anew"
            ) from error
