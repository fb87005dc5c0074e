"""Keys and values in few bits: keys on a grid per channel, values on one per token (KIVI, Liu et al. 2024,
arXiv:2402.02750), as keys have channels that are large for all tokens, and values do not."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGEST = 65000.0
_SLACK, _LEAST = 2.0**-10, 6e-8
"""What rounding to 16 bits may take from a number, relative and at least."""


@dataclass(frozen=True)
class Grid:
    """Numbers as codes on grids of their own for each group: `codes` uint8 (…, bytes of a group), `low` and `step`
    float16 (…). A number is `low + code * step`, within half a step of what it was; beyond 65000 it is cut."""

    codes: Tensor
    low: Tensor
    step: Tensor
    bits: int
    size: int

    @classmethod
    def of(cls, numbers: Tensor, bits: int) -> "Grid":
        """`numbers` (…, group) in 8, 4 or 2 bits."""
        numbers = numbers.float().clamp(-_LARGEST, _LARGEST)
        low, high = numbers.amin(-1), numbers.amax(-1)
        low = (low - low.abs() * _SLACK - _LEAST).half()  # 16 bits must not cut off either end
        step = (high - low.float()) / (2**bits - 1)
        step = (step * (1 + _SLACK) + _LEAST).half()
        codes = ((numbers - low.float()[..., None]) / step.float()[..., None]).round().clamp(0, 2**bits - 1).byte()
        per = 8 // bits
        codes = F.pad(codes, (0, -codes.shape[-1] % per)).reshape(*low.shape, -1, per)
        shifts = torch.arange(per, device=codes.device, dtype=torch.uint8) * bits
        return cls((codes << shifts).sum(-1, dtype=torch.uint8), low, step, bits, numbers.shape[-1])

    def numbers(self) -> Tensor:
        """The numbers (…, group), float32."""
        shifts = torch.arange(8 // self.bits, device=self.codes.device, dtype=torch.uint8) * self.bits
        codes = torch.flatten((self.codes[..., None] >> shifts) & (2**self.bits - 1), -2)[..., : self.size]
        return codes.float() * self.step.float()[..., None] + self.low.float()[..., None]

    def then(self, later: "Grid") -> "Grid":
        """This and `later` joined along the third axis (heads and batch come first)."""
        codes, low, step = (torch.cat(pair, 2) for pair in zip(self._parts(), later._parts(), strict=True))
        return Grid(codes, low, step, self.bits, self.size)

    def first(self, count: int) -> "Grid":
        """The first `count` along the third axis."""
        codes, low, step = (part[:, :, :count].clone() for part in self._parts())
        return Grid(codes, low, step, self.bits, self.size)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.codes, self.low, self.step


@dataclass(frozen=True)
class Packed:
    """Keys and values of some tokens, a multiple of the group. `keys` has groups of tokens for each channel (batch,
    heads, groups, channels; group), `values` of channels for each token (batch, heads, tokens, groups; group)."""

    keys: Grid
    values: Grid

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, bits: int, group: int) -> "Packed":
        """From keys and values (batch, heads, tokens, channels). Values whose channels `group` does not divide have
        one grid for all of them."""
        width = values.shape[-1]
        across = group if width % group == 0 else width
        by_channel = keys.reshape(*keys.shape[:2], -1, group, keys.shape[-1]).transpose(-1, -2)
        return cls(Grid.of(by_channel, bits), Grid.of(values.reshape(*values.shape[:3], -1, across), bits))

    @property
    def rows(self) -> int:
        """How many tokens."""
        return self.values.codes.shape[2]

    def whole(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, tokens, channels)."""
        keys = self.keys.numbers().transpose(-1, -2).flatten(2, 3)
        return keys.to(dtype), self.values.numbers().flatten(-2).to(dtype)

    def then(self, later: "Packed") -> "Packed":
        """These tokens and later ones."""
        return Packed(self.keys.then(later.keys), self.values.then(later.values))

    def first(self, rows: int, group: int) -> "Packed":
        """The first `rows` tokens, a multiple of the group."""
        return Packed(self.keys.first(rows // group), self.values.first(rows))
