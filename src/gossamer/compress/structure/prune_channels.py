"""MLP channels go, equally many in every block of a tower (LLM-Pruner, arXiv 2305.11627)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gossamer.compress.structure.narrowing import Narrowing
from gossamer.core.errors import PlanError
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.models.hierarchy import Block, Hierarchy
from gossamer.models.surgery import channels_of


@technique("prune_channels")
@dataclass(frozen=True)
class PruneChannels(Narrowing):
    """Keeps the channels that matter most: a row of each layer before the activation and a column of the one behind.

    `keep` in (0, 1) is the share that stays; the width is rounded to the nearest multiple of `align`, at least one, as
    matrix kernels like it. `importance` and `ridge` are those of `Narrowing`. Raises `ValueError` for values out of
    range.
    """

    align: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.align < 1:
            raise ValueError(f"align cannot be {self.align}: it is at least 1")

    def reshape(
        self, model: nn.Module, hierarchy: Hierarchy, blocks: Sequence[Block], batches: Sequence[Batch]
    ) -> Hierarchy:
        """See `Reshaper`. `blocks` are all those of one tower or more. Raises `PlanError` where nothing would go."""
        return self.towers(model, hierarchy, blocks, batches, channels_of, self._width)

    def _width(self, whole: int) -> int:
        width = max(1, round(self.keep * whole / self.align)) * self.align
        if width >= whole:
            raise PlanError(
                f"prune_channels: keep {self.keep} of {whole} channels in multiples of {self.align} leaves all; "
                "lower keep or align"
            )
        return width
