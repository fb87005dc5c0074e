"""What every quantiser is told."""

from dataclasses import dataclass
from typing import ClassVar

from gossamer.compress.passes import Phase
from gossamer.models.packed import Scheme


@dataclass(frozen=True)
class OnGrid:
    """`bits` 2 to 8, `group` columns for each scale (None: whole rows), a zero point (not `symmetric`) or none.

    Raises `PlanError` outside those ranges.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True

    phase: ClassVar[Phase] = "quantise"

    def __post_init__(self) -> None:
        _ = self.scheme

    def check(self, rows: int, columns: int) -> None:
        """Raises `PlanError` if a weight of this shape does not fit: the group must divide the columns."""
        self.scheme.groups(columns)

    @property
    def scheme(self) -> Scheme:
        """The grid's kind."""
        return Scheme(self.bits, self.group, self.symmetric)
