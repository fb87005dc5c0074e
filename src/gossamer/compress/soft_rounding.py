"""Rounding that lets gradients pass, for weights that are still to change before they go on their grid."""

import torch
from torch import Tensor

from gossamer.compress.quantize.grid import fit_grid
from gossamer.models.packed import Scheme


class SoftRounding:
    """Rounds a weight to the grids of `scheme`, whose widths follow the spans of its groups.

    How much of its span a grid covers is fitted (least squared error) to the first weight, and to the next one after
    each `refit`; in between it stays, and so do zero points. Gradients pass the rounding as if it were not there
    (straight-through), are cut where values lie beyond the grid's ends, and reach the grids through the spans.
    """

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._share: Tensor | None = None
        self._zeros = torch.zeros(())

    def refit(self) -> None:
        """The grids are fitted anew to the next weight."""
        self._share = None

    def __call__(self, weight: Tensor) -> Tensor:
        """The rounded `weight` (any shape, first dimension rows), of its type."""
        values = self._grouped(weight.float())
        spans = self._spans(values)
        if self._share is None:
            grid = fit_grid(weight.detach().float().reshape(len(weight), -1), self._scheme, "mse")
            self._share = grid.scales.float().unsqueeze(-1) / spans.detach()
            self._zeros = torch.zeros(()) if grid.zeros is None else grid.zeros.float().unsqueeze(-1)
        scales, zeros = spans * self._share, self._zeros
        inside = (values / scales + zeros).clamp(self._scheme.low, self._scheme.high)
        with torch.no_grad():
            numbers = self._scheme.round_(inside.clone())
        return ((inside + (numbers - inside).detach() - zeros) * scales).reshape(weight.shape).to(weight.dtype)

    def _grouped(self, weight: Tensor) -> Tensor:
        return weight.reshape(len(weight), self._scheme.groups(weight[0].numel()), -1)

    def _spans(self, values: Tensor) -> Tensor:
        """(rows, groups, 1): the largest magnitude, or how far the ends lie apart on asymmetric grids; never 0."""
        if self._scheme.symmetric:
            spans = values.abs().amax(-1, keepdim=True)
        else:
            spans = values.amax(-1, keepdim=True).clamp_min(0) - values.amin(-1, keepdim=True).clamp_max(0)
        return spans.clamp_min(torch.finfo(torch.float32).tiny)
