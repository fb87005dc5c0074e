"""Experts go, equally many in every block of a tower that has them (REAP, arXiv 2510.13999)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.compress.calibrate import token_mask
from gossamer.compress.passes import Needs, Phase
from gossamer.core.errors import DataError, PlanError
from gossamer.core.technique import technique
from gossamer.data.batch import Batch
from gossamer.engine.experts import Routed, one_by_one, runs_one_by_one
from gossamer.engine.forward import forward
from gossamer.models.hierarchy import Block, Hierarchy, Layer
from gossamer.models.reloading import logits_of
from gossamer.models.surgery import Reshaped, adopt, experts_of, narrow, tower_of

Criterion = Literal["reap", "frequency"]


@technique("prune_experts")
@dataclass(frozen=True)
class PruneExperts:
    """Keeps the experts of each block that matter most, and the router's rows for them.

    `keep` in (0, 1) is the share that stays, rounded, at least as many as the router chooses for each token. What an
    expert matters is by `criterion`, over the calibration tokens sent to it: for `reap` the mean of its output's norm
    times the router's weight, for `frequency` their number. Raises `ValueError` for values out of range.
    """

    phase: ClassVar[Phase] = "structure"

    keep: float = 0.75
    criterion: Criterion = "reap"

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep cannot be {self.keep}: it is a share above 0 and below 1")
        if self.criterion not in ("reap", "frequency"):
            raise ValueError(f"criterion cannot be {self.criterion!r}: it is reap or frequency")

    @property
    def needs(self) -> Needs:
        """The inputs: both criteria look at what the router does."""
        return "inputs"

    def reshape(
        self, model: nn.Module, hierarchy: Hierarchy, blocks: Sequence[Block], batches: Sequence[Batch]
    ) -> Hierarchy:
        """See `Reshaper`. `blocks` are all those of one tower or more, with experts or without; experts that stay keep
        their numbers in the layers' paths. Raises `PlanError` where nothing would go or a router needs more experts,
        `DataError` without data."""
        if not batches:
            raise DataError("prune_experts needs calibration data: name a task and data")
        found = Reshaped(model, hierarchy)
        waiting = [block.path for block in blocks]
        while waiting:
            tower = tower_of(found.hierarchy, waiting[0])
            units = experts_of(found.model, tower)
            missing = [path for path in units.parts if path not in waiting]
            if missing:
                raise PlanError(
                    f"one config has one number of experts for all blocks: select {missing[0]} too, "
                    f"as {missing[0].rpartition('.')[0]}.* does"
                )
            scores = importance(found.model, tower, self.criterion, batches)
            keep = {path: score.topk(self._kept(score)).indices.sort().values for path, score in scores.items()}
            smaller = narrow(found.model, found.hierarchy, units, keep)
            _check(smaller.model, batches[0], tower)
            found = replace(smaller, hierarchy=smaller.hierarchy.mapped(_numbered(keep)))
            waiting = [path for path in waiting if path not in {block.path for block in tower}]
        adopt(model, found.model)
        return found.hierarchy

    def _kept(self, score: Tensor) -> int:
        count = max(1, round(self.keep * len(score)))
        if count >= len(score):
            raise PlanError(f"prune_experts: keep {self.keep} of {len(score)} experts leaves all; lower keep")
        return count


def importance(
    model: nn.Module, blocks: Sequence[Block], criterion: Criterion, batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Path of each block with experts → what each expert matters, float64 (experts,); 0 for one without tokens.

    Padding does not count. Raises `PlanError` for experts that do not run one by one (see `runs_one_by_one`).
    """
    sums: dict[str, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    masks: list[Tensor | None] = []

    def noting(path: str) -> Callable[[int, Tensor, Routed], None]:
        def note(index: int, outputs: Tensor, routed: Routed) -> None:
            sizes = outputs.double().norm(dim=-1) * routed.weights.double()
            mask = masks[-1]
            if mask is not None and mask.numel() == routed.count:
                sizes = sizes[mask.reshape(-1).to(sizes.device)[routed.tokens]]
            sums[path][index] += float(sizes.sum())
            tokens[path][index] += len(sizes)

        return note

    with torch.no_grad(), ExitStack() as stack:
        for block in blocks:
            for name in dict.fromkeys(layer.module for layer in block.layers if layer.index is not None):
                module = model.get_submodule(name)
                if not runs_one_by_one(module):
                    raise PlanError(f"{block.path}: a {type(module).__name__} does not show what single experts do")
                count = len(next(module.parameters()))
                sums[block.path], tokens[block.path] = torch.zeros(2, count, dtype=torch.float64)
                stack.enter_context(one_by_one(module, written=noting(block.path)))
        for batch in batches:
            masks.append(token_mask(batch))
            forward(model, batch.inputs)
    if criterion == "frequency":
        return tokens
    return {path: total / tokens[path].clamp_min(1) for path, total in sums.items()}


def _check(model: nn.Module, batch: Batch, tower: Sequence[Block]) -> None:
    """Raises `PlanError` if the smaller model does not run: its router may want more experts, or equal groups."""
    try:
        with torch.no_grad():
            runs = bool(torch.isfinite(logits_of(forward(model, batch.inputs))).all())
    except (RuntimeError, ValueError, IndexError):
        runs = False
    if not runs:
        raise PlanError(
            f"{tower[0].path.rpartition('.')[0]}: with so few experts the router cannot choose as the config says; "
            "raise keep"
        )


def _numbered(keep: Mapping[str, Tensor]) -> Callable[[Layer], Layer]:
    """Gives the layers of experts that stayed the numbers that they had."""

    def numbered(layer: Layer) -> Layer:
        block = ".".join(layer.path.split(".")[:3])
        if layer.index is None or block not in keep:
            return layer
        number = str(int(keep[block][layer.index]))

        def named(path: str) -> str:
            pieces = path.split(".")
            return ".".join([*pieces[:-2], number, pieces[-1]])

        return replace(layer, path=named(layer.path), unit=named(layer.unit))

    return numbered
