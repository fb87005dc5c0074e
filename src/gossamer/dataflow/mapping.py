"""Where in the outer memory an address of a program goes: the digits of `rtl/gs_burst.v`, for the host's side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.core.errors import SettingError

_BITS = 32


@dataclass(frozen=True)
class AddressMap:
    """An address is, from its lowest bit, a byte of a burst (`burst` bits), a column, a bank, a row (the rest).

    Consecutive bursts then go to columns of an open row, then to other banks, then to other rows: the order of fewest
    row misses (DRMap, Putra et al. 2020, arXiv 2004.10341). `column_at`, `bank_at`, `row_at` are the lowest bits at
    which the memory's controller expects each; by default all stay where they are. Bursts do not pass 2^`burst` bytes,
    which are at least two bus words.

    Raises `SettingError` where digits do not fit 32 bits, or overlap.
    """

    burst: int = 12
    column: int = 0
    bank: int = 0
    column_at: int | None = None
    bank_at: int | None = None
    row_at: int | None = None

    def __post_init__(self) -> None:
        if not 3 <= self.burst <= 12:
            raise SettingError(f"burst is {self.burst} bits; 3 … 12 (4 KB) are possible")
        taken = 0
        for name, _, width, at in self._digits():
            mask = (1 << width) - 1 << at
            if at < self.burst or mask >> _BITS or mask & taken:
                raise SettingError(f"{name} of {width} bits at bit {at}: it must lie apart from the other digits")
            taken |= mask

    def apply(self, address: NDArray[np.int64]) -> NDArray[np.int64]:
        """Byte addresses as the memory sees them."""
        mapped: NDArray[np.int64] = address & (1 << self.burst) - 1
        for _, low, width, at in self._digits():
            mapped = mapped | (address >> low & (1 << width) - 1) << at
        return mapped

    def bank_of(self, mapped: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bank of addresses as the memory sees them."""
        return self._digit("bank", mapped)

    def row_of(self, mapped: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of addresses as the memory sees them."""
        return self._digit("row", mapped)

    def _digit(self, wanted: str, mapped: NDArray[np.int64]) -> NDArray[np.int64]:
        width, at = next((width, at) for name, _, width, at in self._digits() if name == wanted)
        return mapped >> at & (1 << width) - 1

    def parameters(self) -> dict[str, int]:
        """As parameters of `gs_top`; none where addresses stay as they are."""
        if self == AddressMap():
            return {}
        sizes = {"MAP_BURST": self.burst, "MAP_COLUMN": self.column, "MAP_BANK": self.bank}
        return sizes | {f"MAP_{name.upper()}_AT": at for name, _, _, at in self._digits()}

    def _digits(self) -> list[tuple[str, int, int, int]]:
        """Name, lowest bit in the program's address, width, lowest bit in the memory's address."""
        digits, low = [], self.burst
        row = _BITS - self.burst - self.column - self.bank
        for name, width, at in (
            ("column", self.column, self.column_at),
            ("bank", self.bank, self.bank_at),
            ("row", row, self.row_at),
        ):
            digits.append((name, low, width, low if at is None else at))
            low += width
        return digits
