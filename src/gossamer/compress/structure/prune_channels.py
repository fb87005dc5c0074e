"""MLP channels go, equally many in every block of a tower or as they matter (LLM-Pruner, arXiv 2305.11627)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn

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
    matrix kernels like it. With `widths` "free" that is the mean width of the selected blocks: which of them keep more
    is decided by `spread_channels`, and each keeps at least the share `minimum` in [0, keep]. Few families' configs can
    say so; checkpoints of the others carry `modeling_gossamer.py`. `importance` and `ridge` are those of `Narrowing`.
    Raises `ValueError` for values out of range.
    """

    align: int = 64
    widths: Literal["uniform", "free"] = "uniform"
    minimum: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.align < 1:
            raise ValueError(f"align cannot be {self.align}: it is at least 1")
        if self.widths == "free" and self.importance == "learned":
            raise ValueError("importance cannot be learned with free widths: masks hold every block to one share")
        if self.widths == "free" and not 0 <= self.minimum <= self.keep:
            raise ValueError(f"minimum cannot be {self.minimum}: it is a share from 0 to keep, which is {self.keep}")

    def reshape(
        self, model: nn.Module, hierarchy: Hierarchy, blocks: Sequence[Block], batches: Sequence[Batch]
    ) -> Hierarchy:
        """See `Reshaper`. `blocks` are all those of one tower or more, with free widths any.

        Raises `PlanError` where nothing would go.
        """
        spread = self._spread if self.widths == "free" else None
        return self.towers(model, hierarchy, blocks, batches, channels_of, self._width, spread)

    def _width(self, whole: int) -> int:
        width = max(1, round(self.keep * whole / self.align)) * self.align
        if width >= whole:
            raise PlanError(
                f"prune_channels: keep {self.keep} of {whole} channels in multiples of {self.align} leaves all; "
                "lower keep or align"
            )
        return width

    def _spread(self, scores: Mapping[str, Tensor], width: int) -> dict[str, int]:
        return spread_channels(scores, width, self.align, self.minimum)


def spread_channels(scores: Mapping[str, Tensor], width: int, align: int, minimum: float) -> dict[str, int]:
    """The number of channels of each block, `width` in the mean, given their importance (channels,) by block path.

    A block's importance is divided by the square root of its mean: halfway between its own values, which overrate
    blocks that matter for other reasons too, and shares, which do not tell blocks apart. Its channels, by falling
    importance, form groups of `align`, and over all blocks the groups that sum up to most go in. Every number is a
    multiple of `align`, of which `width` is one; a block gets at least the share `minimum` of its channels, rounded up,
    but never more than `width` for that.
    """
    wanted = width // align
    gains: list[Tensor] = []
    owners: list[Tensor] = []
    counts: dict[str, int] = {}
    for number, (path, score) in enumerate(scores.items()):
        least = min(wanted, max(1, ceil(minimum * len(score) / align)))
        falling = (score / score.mean().clamp_min(1e-30).sqrt()).sort(descending=True).values
        groups = falling[: len(score) // align * align].view(-1, align).sum(1)[least:]
        counts[path] = least
        gains.append(groups)
        owners.append(torch.full((len(groups),), number))
    left = wanted * len(scores) - sum(counts.values())
    chosen = torch.cat(owners)[torch.cat(gains).sort(descending=True, stable=True).indices[:left]]
    return {path: (counts[path] + int((chosen == number).sum())) * align for number, path in enumerate(counts)}
