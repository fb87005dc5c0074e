"""What pruning channels and pruning heads share: choose what goes, make up for it, cut, and check the cut.

First the columns that read what goes become zero, block by block, and those that stay are fitted anew to what the layer
gave. Then the zeros are cut out; the narrower model must compute what the one with zeros does.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.compress.calibrate import Stream, layers_by_step, pass_through
from gossamer.compress.passes import Needs, Phase
from gossamer.compress.statistics import Statistics
from gossamer.compress.structure.importance import importance
from gossamer.compress.structure.masks import learned
from gossamer.compress.structure.outputs import check_same
from gossamer.compress.swap import restored
from gossamer.core.errors import DataError, PlanError
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward
from gossamer.engine.walk import Walk
from gossamer.models.hierarchy import Block, Hierarchy, Layer
from gossamer.models.structure import read_matrix, write_matrix
from gossamer.models.surgery import Reshaped, Units, adopt, narrow, tower_of

Spread = Callable[[Mapping[str, Tensor], int], Mapping[str, int]]
"""How many units each block keeps, given the importance (units,) of those it has, by block path, and the mean."""


@dataclass(frozen=True)
class Narrowing:
    """The settings.

    `importance` is how units are ranked: by their weights (see `importance`), or by `learned` masks, which take `steps`
    and the draws of `seed`. `ridge` in (0, 1] is the damping, as a share of the mean
    squared input, of the fit of the columns that stay; None leaves them as they are. `keep` in (0, 1) is the share of
    units that stays. Raises `ValueError` outside those ranges.
    """

    phase: ClassVar[Phase] = "structure"

    importance: Literal["magnitude", "taylor", "taylor2", "learned"] = "taylor"
    ridge: float | None = 0.01
    keep: float = 0.75
    steps: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps cannot be {self.steps}: it is at least 1")
        if self.ridge is not None and not 0 < self.ridge <= 1:
            raise ValueError(f"ridge cannot be {self.ridge}: it is above 0 and at most 1, or none")
        if not 0 < self.keep < 1:
            raise ValueError(f"keep cannot be {self.keep}: it is a share above 0 and below 1")

    @property
    def needs(self) -> Needs:
        """The inputs, unless weights alone decide and nothing is fitted."""
        return "nothing" if self.importance == "magnitude" and self.ridge is None else "inputs"

    def towers(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        blocks: Sequence[Block],
        batches: Sequence[Batch],
        find: Callable[[nn.Module, tuple[Block, ...]], Units],
        kept: Callable[[int], int],
        spread: Spread | None = None,
    ) -> Hierarchy:
        """Narrows every tower of `blocks`, in place. `find` gives a tower's units, `kept` how many of a block's stay.

        With `spread` this is their mean over the selected blocks, which may be some of a tower's.
        Raises `PlanError` for a tower of which only some blocks are selected without it, `DataError` without data that
        is needed.
        """
        if self.needs != "nothing" and not batches:
            raise DataError("pruning by gradients, masks or with a ridge needs calibration data: name a task and data")
        found = Reshaped(model, hierarchy)
        waiting = [block.path for block in blocks]
        while waiting:
            tower = tower_of(found.hierarchy, waiting[0])
            missing = [block.path for block in tower if block.path not in waiting]
            if missing and spread is None:
                raise PlanError(
                    f"one config has one width for all blocks: select {missing[0]} too, "
                    f"as {missing[0].rpartition('.')[0]}.* does"
                )
            units = find(found.model, tower)
            count = kept(units.count)
            scores = self._scores(found.model, units, batches, count / units.count)
            chosen = {path: score for path, score in scores.items() if path in waiting}
            counts = dict.fromkeys(chosen, count) if spread is None else spread(chosen, count)
            keep = {
                path: score.topk(counts.get(path, units.count)).indices.sort().values for path, score in scores.items()
            }
            found = self._narrowed(found, units, keep, batches)
            waiting = [path for path in waiting if path not in {block.path for block in tower}]
        adopt(model, found.model)
        return found.hierarchy

    def _scores(self, model: nn.Module, units: Units, batches: Sequence[Batch], share: float) -> Mapping[str, Tensor]:
        """The importance (units,) of each block's units, by block path; a `share` of them is to stay."""
        if self.importance == "learned":
            return learned(model, units, batches, share, self.steps, self.seed)
        return importance(model, units, self.importance, batches)

    def _narrowed(
        self, found: Reshaped, units: Units, keep: Mapping[str, Tensor], batches: Sequence[Batch]
    ) -> Reshaped:
        model, hierarchy = found.model, found.hierarchy
        with ExitStack() as stack:
            stack.enter_context(restored(model, units.readers.values()))
            _mask(model, hierarchy, units, keep, self.ridge, batches)
            smaller = narrow(model, hierarchy, units, keep)
            if batches:
                with torch.no_grad():
                    what = f"pruning {next(iter(keep)).rpartition('.')[0]}"
                    check_same(forward(model, batches[0].inputs), forward(smaller.model, batches[0].inputs), what)
        return smaller


def _mask(
    model: nn.Module,
    hierarchy: Hierarchy,
    units: Units,
    keep: Mapping[str, Tensor],
    ridge: float | None,
    batches: Sequence[Batch],
) -> None:
    """Zeroes what reads the units that go, in place, and fits the rest on what reaches it through the blocks before."""
    of_layer = {layer.path: path for path, layer in units.readers.items() if len(keep[path]) < units.count}

    def mask(layer: Layer, statistics: Statistics | None) -> None:
        path = of_layer.pop(layer.path)
        weight = read_matrix(model, layer).float()
        columns = units.columns(path)[keep[path]].flatten().to(weight.device)
        write_matrix(model, layer, masked(weight, columns, statistics, ridge))

    if ridge is not None:
        walk = Walk(model, hierarchy, batches[0].inputs)
        stream = Stream(walk, batches)
        steps = layers_by_step(walk, hierarchy)
        for step in sorted(steps):
            pass_through(model, stream, [layer for layer in steps[step] if layer.path in of_layer], mask)
    for layer in [layer for layer in units.readers.values() if layer.path in of_layer]:
        mask(layer, None)


def masked(weight: Tensor, columns: Tensor, statistics: Statistics | None, ridge: float | None) -> Tensor:
    """`weight` (rows, all) with zeros outside `columns` (kept,), fitted anew (see `refit`) where both are given."""
    kept = weight[:, columns]
    if statistics is not None and ridge is not None:
        kept = refit(weight, columns, statistics.hessian, ridge)
    return torch.zeros_like(weight).index_copy_(1, columns, kept)


def refit(weight: Tensor, columns: Tensor, hessian: Tensor, ridge: float) -> Tensor:
    """The `columns` (kept,) of `weight` (rows, all), so changed that the output is closest to what all columns gave.

    Ridge regression about what they were: (W H_K + λ W_K)(H_KK + λ I)⁻¹ with H (all, all) the mean of x xᵀ and λ =
    `ridge` times the mean diagonal of H_KK; never worse than W_K on these inputs. Returns (rows, kept) float32, W_K
    where the inputs are 0 throughout.
    """
    inner = hessian[columns][:, columns].double()
    strength = ridge * float(inner.diagonal().mean())
    kept = weight[:, columns]
    if strength <= 0:
        return kept
    inner.diagonal().add_(strength)
    wanted = weight.double() @ hessian[:, columns].double() + strength * kept.double()
    return torch.linalg.solve(inner, wanted.T).T.float()
