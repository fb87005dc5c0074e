"""Whole blocks go: the residual stream passes over them, and the model is shallower."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from gossamer.compress.passes import Needs, Phase
from gossamer.compress.structure.outputs import check_same, skipping
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward
from gossamer.models.hierarchy import Block, Hierarchy
from gossamer.models.surgery import Reshaped, adopt, drop_blocks


@technique("drop_block")
@dataclass(frozen=True)
class DropBlock:
    """Takes the selected blocks out. Which ones cost least is `choose_blocks`' to say."""

    phase: ClassVar[Phase] = "structure"

    @property
    def needs(self) -> Needs:
        """Nothing; with calibration data the result is checked."""
        return "nothing"

    def reshape(
        self, model: nn.Module, hierarchy: Hierarchy, blocks: Sequence[Block], batches: Sequence[Batch]
    ) -> Hierarchy:
        """See `Reshaper`. On the first of `batches`, if any, the model must compute what it does with `blocks` skipped:
        some families read certain blocks elsewhere too."""
        found = without(model, hierarchy, blocks, batches)
        adopt(model, found.model)
        return found.hierarchy


def without(model: nn.Module, hierarchy: Hierarchy, blocks: Sequence[Block], batches: Sequence[Batch]) -> Reshaped:
    """The model without `blocks`, checked on the first of `batches`; `model` itself stays. Raises `PlanError`."""
    found = drop_blocks(model, hierarchy, [block.path for block in blocks])
    if batches:
        with torch.no_grad():
            with skipping(model, blocks):
                wanted = forward(model, batches[0].inputs)
            names = ", ".join(block.path for block in blocks)
            check_same(wanted, forward(found.model, batches[0].inputs), f"dropping {names}")
    return found
