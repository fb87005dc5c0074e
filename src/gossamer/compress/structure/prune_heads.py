"""Attention heads go, whole key-value groups of them, equally many in every block of a tower (arXiv 2305.11627)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gossamer.compress.structure.narrowing import Narrowing
from gossamer.core.errors import PlanError
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.models.hierarchy import Block, Hierarchy
from gossamer.models.surgery import heads_of


@technique("prune_heads")
@dataclass(frozen=True)
class PruneHeads(Narrowing):
    """Keeps the key-value heads that matter most, each with its query heads and the columns that read them.

    `keep` in (0, 1) is the share of groups that stays, rounded to whole groups, at least one. `importance` and `ridge`
    are those of `Narrowing`. Raises `ValueError` for values out of range.
    """

    def reshape(
        self, model: nn.Module, hierarchy: Hierarchy, blocks: Sequence[Block], batches: Sequence[Batch]
    ) -> Hierarchy:
        """See `Reshaper`. `blocks` are all those of one tower or more. Raises `PlanError` where nothing would go."""
        return self.towers(model, hierarchy, blocks, batches, heads_of, self._groups)

    def _groups(self, whole: int) -> int:
        groups = max(1, round(self.keep * whole))
        if groups >= whole:
            raise PlanError(f"prune_heads: keep {self.keep} of {whole} groups of heads leaves all; lower keep")
        return groups
