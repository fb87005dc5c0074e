"""Descent over orthogonal matrices: Cayley SGD with momentum on the Stiefel manifold (arXiv 2002.01113)."""

import torch
from torch import Tensor

MOMENTUM = 0.9


class CayleyDescent:
    """An orthogonal `matrix` float64 (n, n) that moves against slopes and stays orthogonal.

    With `keeps_mean` it goes on mapping the vector of ones to itself, as the matrix that it starts from must.
    """

    def __init__(self, start: Tensor, keeps_mean: bool) -> None:
        self.matrix = start.double()
        self._keeps_mean = keeps_mean
        self._momentum = torch.zeros_like(self.matrix)

    def move(self, slope: Tensor, angle: float) -> None:
        """One step by `angle`: the root mean square, in radians, of how far it turns the n directions.

        The paper bounds the rate by the size of the slope; to settle the angle makes it independent of the loss's unit.
        """
        push = (MOMENTUM * self._momentum - slope.to(self.matrix)) @ self.matrix.T
        skew = (push - push.T) / 2
        if self._keeps_mean:
            skew = skew - skew.mean(0) - skew.mean(1, keepdim=True)  # the mean of a skew matrix is 0
        self._momentum = skew @ self.matrix
        size = float(skew.norm()) / len(skew) ** 0.5
        if not size > 0:
            return
        half = skew * (angle / size / 2)
        one = torch.eye(len(skew), dtype=torch.float64)
        self.matrix = torch.linalg.solve(one - half, (one + half) @ self.matrix)
