"""SignRound: which way to round, and how wide the grid is, learnt on a block's output (arXiv 2309.05516)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gossamer.compress.passes import BlockRun, Rounded
from gossamer.compress.quantize.gptq import targets_of
from gossamer.compress.quantize.qronos import Qronos
from gossamer.core.technique import technique
from gossamer.models.packed import QuantizedTensor, Scheme

WIDEST = 0.5
"""Largest change of a grid's width, as a share."""


@technique("signround")
@dataclass(frozen=True)
class SignRound(Qronos):
    """Qronos first; then every rounding may move by up to half a step and every group's width by up to half.

    Both are learnt for all layers of a block together by `iterations` steps of sign gradient descent, whose rate falls
    from 1 / `iterations` to 0, on the mean squared difference to the unchanged model's output. Rounding lets gradients
    pass (straight-through). The result is kept only if it lowers the difference over all calibration data. Other
    settings are Qronos's. Raises `ValueError` for fewer than 1 iteration.
    """

    iterations: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations cannot be {self.iterations}: there is at least 1")

    def polish(
        self, block: nn.Module, layers: Mapping[str, Rounded], runs: Sequence[BlockRun]
    ) -> dict[str, QuantizedTensor]:
        """Better roundings of the block's layers by the names of their parameters in it; empty if none was found.

        The block's own parameters hold the present roundings and are not changed.
        """
        learnt = {name: _Learnt.of(layer, self) for name, layer in layers.items()}
        unknowns = [unknown for one in learnt.values() for unknown in (one.shift, one.width)]
        with torch.enable_grad():
            for step in range(self.iterations):
                run = runs[step % len(runs)]
                loss = _loss(block, {name: one.soft() for name, one in learnt.items()}, run)
                slopes = torch.autograd.grad(loss, unknowns)
                rate = (1 - step / self.iterations) / self.iterations
                with torch.no_grad():
                    for unknown, slope in zip(unknowns, slopes, strict=True):
                        unknown.sub_(slope.sign_(), alpha=rate)
                    for one in learnt.values():
                        one.shift.clamp_(-0.5, 0.5)
                        one.width.clamp_(1 - WIDEST, 1 + WIDEST)
        found = {name: one.hard() for name, one in learnt.items()}
        after = {name: tensor.dequantize() for name, tensor in found.items()}
        with torch.no_grad():
            before, now = (sum(float(_loss(block, weights, run)) for run in runs) for weights in ({}, after))
        return found if now < before else {}


def _loss(block: nn.Module, weights: Mapping[str, Tensor], run: BlockRun) -> Tensor:
    """Mean squared difference of the block's output, computed with these weights, to the target, over real tokens."""
    shaped = {name: weight.reshape(block.get_parameter(name).shape) for name, weight in weights.items()}
    output = functional_call(block, shaped, run.args, run.kwargs)
    difference = (output[0] if isinstance(output, tuple) else output) - run.target
    return (difference if run.mask is None else difference[run.mask]).square().mean()


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
        aim = layer.statistics.target(layer.weight, settings.damping)
        aims = aim if factor is None else targets_of(aim, tensor.dequantize().reshape(aim.shape), factor)
        latent = aims.reshape(rows, groups, -1) / tensor.scales.float().unsqueeze(-1)
        shift = torch.zeros(layer.weight.shape, requires_grad=True)
        return cls(layer, tensor.scheme, latent, shift, torch.ones(rows, groups, requires_grad=True))

    def codes(self) -> Tensor:
        """(rows, groups, columns each) before rounding, with zero points."""
        values = self.latent / self.width.unsqueeze(-1) + self.shift.reshape(self.latent.shape)
        zeros = self.layer.tensor.zeros
        return values if zeros is None else values + zeros.unsqueeze(-1)

    def soft(self) -> Tensor:
        """The rounded weight (rows, columns), with gradients as if it had not been rounded."""
        values = self.codes()
        rounded = values + (values.round() - values).detach()
        rounded = rounded.clamp(self.scheme.low, self.scheme.high)
        zeros = self.layer.tensor.zeros
        steps = rounded if zeros is None else rounded - zeros.unsqueeze(-1)
        scales = (self.layer.tensor.scales.float() * self.width).unsqueeze(-1)
        return (steps * scales).reshape(self.layer.weight.shape)

    @torch.no_grad()
    def hard(self) -> QuantizedTensor:
        """The layer on its final grid, scales rounded to 16 bits."""
        old = self.layer.tensor
        codes = self.codes().round().clamp(self.scheme.low, self.scheme.high).to(torch.int8)
        scales = (old.scales.float() * self.width).half()
        return QuantizedTensor(old.scheme, old.shape, codes.reshape(old.codes.shape), scales, old.zeros)
