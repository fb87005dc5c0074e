"""AWQ's scales alone: columns that matter grow before whatever rounds them (arXiv 2306.00978)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gossamer.compress.passes import Aim, Phase
from gossamer.compress.quantize.awq import Awq
from gossamer.compress.scaling import fold_scales
from gossamer.core.errors import DataError
from gossamer.core.progress import SILENT
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.packed import fitting_group


@technique("awq_scales")
@dataclass(frozen=True)
class AwqScales:
    """The scales that `awq` would find for a grid of `bits` and `group`, folded in without rounding.

    What rounds may then be another technique, and other widths. `group` is made to fit each layer's columns; `steps` as
    in `awq`. Raises what `awq` raises for its settings.
    """

    bits: int = 4
    group: int | None = 64
    steps: int = 20
    phase: ClassVar[Phase] = "transform"

    def __post_init__(self) -> None:
        self._for(0)

    def transform(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        layers: Sequence[Layer],
        batches: Sequence[Batch],
        aims: Mapping[str, Aim],
    ) -> tuple[str, ...]:
        """See `compress.passes.Transform`. Raises `DataError` without calibration data."""
        if not batches:
            raise DataError("awq_scales needs calibration data: scales come from the inputs of each layer")
        wanted = {layer.path: self._for(layer.columns) for layer in layers if layer.kind == "linear"}
        left = fold_scales(model, hierarchy, Walk(model, hierarchy, batches[0].inputs), batches, wanted, SILENT)
        return tuple(f"{path}: nothing before it can make up for scales; not scaled" for path in left)

    def _for(self, columns: int) -> Awq:
        return Awq(self.bits, fitting_group(columns, self.group), steps=self.steps)
