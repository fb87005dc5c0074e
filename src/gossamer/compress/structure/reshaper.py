"""The protocol of techniques that make a model's shapes smaller."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import nn

from gossamer.compress.passes import Needs, Phase
from gossamer.core.errors import PlanError
from gossamer.core.paths import matches
from gossamer.data.batch import Batch
from gossamer.models.hierarchy import Block, Hierarchy


class Reshaper(Protocol):
    """Takes parts of a model away, so that what is left is a model that transformers loads."""

    phase: ClassVar[Phase] = "structure"

    @property
    def needs(self) -> Needs: ...

    def reshape(
        self, model: nn.Module, hierarchy: Hierarchy, blocks: Sequence[Block], batches: Sequence[Batch]
    ) -> Hierarchy:
        """Makes `blocks` smaller, or takes them out, in place; returns what the model is then.

        The new hierarchy keeps the blocks' paths, so that later steps of a plan speak of the same blocks by the same
        names, while their modules may have other numbers. Modules held from before are no longer the model's.
        Raises `PlanError` where the model's config cannot describe the result; the model is as it was then.
        """
        ...


def selected_blocks(hierarchy: Hierarchy, pattern: str) -> tuple[Block, ...]:
    """The blocks that a path glob selects as a whole. Raises `PlanError` if there are none."""
    found = tuple(block for block in hierarchy.blocks() if matches(pattern, block.path))
    if not found:
        raise PlanError(f"{pattern!r} selects no whole block: structure goes by blocks, such as language.blocks.3")
    return found
