"""GPTQ: each column's rounding error is made up for by the columns that follow (arXiv 2210.17323)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossamer.compress.factor import Factor, check_damping
from gossamer.compress.passes import Needs, Quantized, usable
from gossamer.compress.quantize.grid import Grid, fit_grid
from gossamer.compress.quantize.on_grid import InFormat
from gossamer.compress.statistics import Statistics
from gossamer.core.technique import technique
from gossamer.models.packed import QuantizedTensor, Scheme

_BLOCK = 64


@technique("gptq")
@dataclass(frozen=True)
class Gptq(InFormat):
    """Rounds column by column under the calibration Hessian.

    `bits` 2 to 8; `group` columns for each scale, None for whole rows; `format` as in `InFormat`. `act_order` takes the
    columns with the largest inputs first; groups stay those of the stored order and their scales are fixed beforehand,
    so nothing but the usual codes and scales is stored. `damping` in (0, 1] is the share of the mean diagonal added to
    the Hessian; it grows tenfold while the Hessian is singular, and beyond 1 the layer is rounded to nearest, which the
    notes tell. `clip` finds the scales: `hessian` weighs each column's squared error by what it costs after
    compensation, `mse` weighs all alike, `none` spans every value. `guided` lets each token weigh as much as the
    model's predictions hang on it (see `weigh_tokens`). Raises `ValueError` for damping outside its range.
    """

    act_order: bool = True
    damping: float = 0.01
    clip: Literal["none", "mse", "hessian"] = "hessian"
    guided: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)

    @property
    def needs(self) -> Needs:
        """The inputs: without statistics a layer is rounded to nearest."""
        return "inputs"

    def quantize(self, weight: Tensor, statistics: Statistics | None, mask: Tensor | None = None) -> Quantized:
        """The quantised form of `weight` (rows, columns) for inputs with these `statistics`.

        `mask` bool (rows, columns) is False where the weight is 0 and stays so; the rest makes up for it.
        Raises `PlanError` if the group does not divide the columns, `ModelError` for weights or Hessians that are not
        finite.
        """
        original = weight = usable(weight)
        factor = None if statistics is None else statistics.factor(self.damping, self.act_order)
        costs = factor.costs if factor is not None and self.clip == "hessian" else None
        if statistics is not None:
            weight, factor = self.aim(weight, statistics, factor)
        grid = fit_grid(weight, self.scheme, "none" if self.clip == "none" else "mse", costs)
        if factor is None:
            tensor = QuantizedTensor.encode(weight, self.scheme, grid.scales, grid.zeros)
            reason = "no calibration statistics" if statistics is None else "the Hessian is singular at every damping"
            return Quantized(original, tensor, statistics, (f"rounded to nearest: {reason}",))
        codes = diffuse(weight, factor, self.scheme, grid, mask)
        tensor = QuantizedTensor(self.scheme, tuple(weight.shape), codes, grid.scales, grid.zeros)
        return Quantized(original, tensor, statistics, factor.remarks(self.damping, "they are rounded to nearest"))

    def aim(self, weight: Tensor, statistics: Statistics, factor: Factor | None) -> tuple[Tensor, Factor | None]:
        """What the codes shall come near to (rows, columns), and how its errors are passed on: here the weight itself.

        `factor` is the Hessian's, None if that is singular at every damping.
        """
        return weight, factor


def diffuse(weight: Tensor, factor: Factor, scheme: Scheme, grid: Grid, mask: Tensor | None = None) -> Tensor:
    """The codes int8 (rows, columns) that error diffusion finds for `weight` on a fixed grid.

    Where `mask` bool (rows, columns) is False the value becomes 0, which counts as an error like any other.

    Works on columns as contiguous rows. A column takes in the errors of all before it when its turn comes: those of
    earlier blocks by one matrix product for the whole block, those of its own block by a vector product. Each column's
    error replaces its values in place.
    """
    columns = weight.shape[1]
    pull, order = factor.pull, factor.order
    group = (order // (columns // grid.scales.shape[1])).tolist()
    scales = grid.scales.float().T.contiguous().unbind()
    zeros = None if grid.zeros is None else grid.zeros.float().T.contiguous().unbind()
    errors = weight.T[order]
    kept = None if mask is None else mask.T[order]
    codes = torch.empty(errors.shape, dtype=torch.int8, device=errors.device)
    numbers = torch.empty_like(errors[:_BLOCK])
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        targets = torch.addmm(errors[start:stop], pull[start:stop, :start], errors[:start]).unbind()
        known = errors[start:stop].T
        for offset, target in enumerate(targets):
            j = start + offset
            if offset:
                target.addmv_(known[:, :offset], pull[j, start:j])
            scale, code = scales[group[j]], numbers[offset]
            torch.div(target, scale, out=code)
            if zeros is None:
                scheme.round_(code)
                if kept is not None:
                    code.mul_(kept[j])
                errors[j].addcmul_(code, scale, value=-1)
            else:
                zero = zeros[group[j]]
                code.round_().add_(zero).clamp_(scheme.low, scheme.high)
                if kept is not None:
                    code.copy_(torch.where(kept[j], code, zero))
                errors[j].addcmul_(code - zero, scale, value=-1)
        codes[start:stop] = scheme.encode(numbers[: stop - start])
    back = torch.empty_like(order)
    back[order] = torch.arange(columns, device=order.device)
    return codes[back].T.contiguous()


def targets_of(weight: Tensor, rounded: Tensor, factor: Factor) -> Tensor:
    """What each value was when its turn to be rounded came, (rows, columns), given what all became (see `Factor`)."""
    order = factor.order
    errors = (weight - rounded).T[order]
    targets = torch.empty_like(weight)
    targets[:, order] = (weight.T[order] + factor.pull.tril(-1) @ errors).T
    return targets
