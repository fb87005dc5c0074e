"""A step's pictures shared out among threads, with one meeting at the end of the step.

OpenMP meets at every operation; on two cores that other programs use too, each meeting waits for whoever was put
aside, and two threads were slower than one (1.4 s a step against 1.1 s). Here each thread works through its own
pictures, forwards and backwards, and the gradients are added once. The result does not depend on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn


class _Known(torch.autograd.Function):
    """A loss whose gradients are already known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *(None if g is None else g * upstream for g in ctx.gradients)


def shared_out(
    model: nn.Module, pool: ThreadPoolExecutor, part: Callable[[int], tuple[Tensor, dict[str, float]]], parts: int
) -> tuple[Tensor, dict[str, float]]:
    """The mean of `part(0..parts-1)`, each a loss and its metrics, as one loss that `backward()` may be called on."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def work(i: int) -> tuple[Tensor, dict[str, float], Sequence[Tensor | None]]:
        loss, metrics = part(i)
        return loss.detach(), metrics, torch.autograd.grad(loss, parameters, allow_unused=True)

    done = list(pool.map(work, range(parts)))
    gradients: list[Tensor | None] = []
    for pieces in zip(*(g for _, _, g in done), strict=True):
        known = [p for p in pieces if p is not None]
        gradients.append(torch.stack(known).sum(0).div_(parts) if known else None)
    value = torch.stack([loss for loss, _, _ in done]).mean()
    metrics = {k: sum(m[k] for _, m, _ in done) / parts for k in done[0][1]}
    return _Known.apply(value, gradients, *parameters), metrics
