"""SignRound: which way to round, and how wide the grid is, learnt on a block's output (arXiv 2309.05516)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gossamer.compress.passes import BlockRun, Place, Rounded
from gossamer.compress.quantize.blockwise import learn, passing_round
from gossamer.compress.quantize.gptq import targets_of
from gossamer.compress.quantize.qronos import Qronos
from gossamer.core.technique import technique
from gossamer.models.number_formats import allowed_scales
from gossamer.models.packed import QuantizedTensor, Scheme

WIDEST = 0.5
"""Largest change of a grid's width, as a share."""


@technique("signround")
@dataclass(frozen=True)
class SignRound(Qronos):
    """Qronos first; then every rounding may move by up to half a step and every group's width by up to half.

    Both are learnt for all layers of a block together by `iterations` steps of sign gradient descent, whose rate falls
    from 1 / `iterations` to 0, on the mean squared difference to the unchanged model's output (see `learn`). Rounding
    lets gradients pass (straight-through). Other settings are Qronos's. Raises `ValueError` for fewer than 1 iteration.
    """

    iterations: int = 200

    keeps_zeros: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format != "int":
            raise ValueError(f"format cannot be {self.format!r}: roundings are learnt on grids of whole numbers")
        if self.iterations < 1:
            raise ValueError(f"iterations cannot be {self.iterations}: there is at least 1")

    def polish(
        self, block: nn.Module, layers: Mapping[Place, Rounded], runs: Sequence[BlockRun]
    ) -> dict[Place, QuantizedTensor]:
        """Better roundings of the block's layers by their places in it; empty if none was found."""
        learnt = {name: _Learnt.of(layer, self) for name, layer in layers.items()}

        def move(step: int, slopes: Sequence[Tensor]) -> None:
            rate = (1 - step / self.iterations) / self.iterations
            for one, shift, width in zip(learnt.values(), slopes[::2], slopes[1::2], strict=True):
                one.shift.sub_(shift.sign(), alpha=rate).clamp_(-0.5, 0.5)
                one.width.sub_(width.sign(), alpha=rate).clamp_(1 - WIDEST, 1 + WIDEST)

        return learn(block, learnt, runs, self.iterations, move)


@dataclass(frozen=True, eq=False)
class _Learnt:
    """A layer's unknowns: `shift` (rows, columns) of what is rounded, `width` (rows, groups) of its grid.

    `latent` (rows, groups, columns each) is what the first rounding rounded, in codes without zero points.
    """

    layer: Rounded
    scheme: Scheme
    latent: Tensor
    shift: Tensor
    width: Tensor

    @classmethod
    def of(cls, layer: Rounded, settings: SignRound) -> "_Learnt":
        tensor, rows = layer.tensor, len(layer.weight)
        groups = tensor.scales.shape[1]
        factor = layer.statistics.factor(settings.damping, settings.act_order)
        aim = layer.statistics.target(layer.weight, factor)
        aims = aim if factor is None else targets_of(aim, tensor.dequantize().reshape(aim.shape), factor)
        latent = aims.reshape(rows, groups, -1) / tensor.scales.float().unsqueeze(-1)
        shift = torch.zeros_like(layer.weight, requires_grad=True)
        return cls(layer, tensor.scheme, latent, shift, layer.weight.new_ones(rows, groups, requires_grad=True))

    @property
    def unknowns(self) -> tuple[Tensor, Tensor]:
        return self.shift, self.width

    def codes(self) -> Tensor:
        """(rows, groups, columns each) before rounding, with zero points."""
        values = self.latent / self.width.unsqueeze(-1) + self.shift.reshape(self.latent.shape)
        zeros = self.layer.tensor.zeros
        return values if zeros is None else values + zeros.unsqueeze(-1)

    def soft(self) -> Tensor:
        """The rounded weight (rows, columns), with gradients as if it had not been rounded."""
        rounded = passing_round(self.codes()).clamp(self.scheme.low, self.scheme.high)
        zeros = self.layer.tensor.zeros
        steps = rounded if zeros is None else rounded - zeros.unsqueeze(-1)
        scales = (self.layer.tensor.scales.float() * self.width).unsqueeze(-1)
        return (steps * scales).reshape(self.layer.weight.shape)

    @torch.no_grad()
    def hard(self) -> QuantizedTensor:
        """The layer on its final grid, scales rounded to 16 bits."""
        old = self.layer.tensor
        codes = self.codes().round().clamp(self.scheme.low, self.scheme.high).to(torch.int8)
        scales = allowed_scales(old.scales.float() * self.width).half()
        return QuantizedTensor(old.scheme, old.shape, codes.reshape(old.codes.shape), scales, old.zeros)
