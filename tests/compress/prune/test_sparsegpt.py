import pytest
import torch
from tests.compress.prune.cases import layer
from torch import Tensor

from gossamer.compress.prune import SparseGpt
from gossamer.compress.statistics import Statistics


def textbook(weight: Tensor, hessian: Tensor, sparsity: float, groups: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Optimal brain surgery from left to right on a dense float64 inverse, one weight at a time."""
    rows, columns = weight.shape
    damped = hessian.double() + 0.01 * hessian.diagonal().mean().double() * torch.eye(columns)
    inverse = torch.linalg.inv(damped)
    left = [inverse]  # the inverse Hessian of columns j and after, where those before are settled
    for j in range(columns):
        left.append(left[j] - left[j][:, j].outer(left[j][j]) / left[j][j, j])
    values = weight.double().clone()
    gone = torch.zeros(rows, columns, dtype=torch.bool)
    width = 128 if groups is None else groups[1]
    for j in range(columns):
        if j % width == 0:
            ahead = range(j, min(j + width, columns))
            saliency = torch.stack([values[:, k].square() / left[k][k, k] for k in ahead], 1)
            if groups is None:
                count = round(sparsity * rows * (ahead[-1] + 1)) - round(sparsity * rows * j)
                flat = torch.zeros(saliency.numel(), dtype=torch.bool)
                flat[saliency.flatten().argsort()[:count]] = True
                gone[:, ahead] = flat.reshape(saliency.shape)
            else:
                for row in range(rows):
                    gone[row, j + saliency[row].argsort()[: groups[1] - groups[0]]] = True
        for row in range(rows):
            if gone[row, j]:
                values[row, j:] -= values[row, j] / left[j][j, j] * left[j][j, j:]
    return values * ~gone, ~gone


@pytest.mark.parametrize(
    ("sparsity", "pattern"), [(0.5, None), (0.7, None), (None, "2:4"), (None, "4:8"), (None, "2:5")]
)
@pytest.mark.parametrize("columns", [40, 160])
def test_it_is_optimal_brain_surgery_from_left_to_right(sparsity, pattern, columns):
    weight, statistics = layer(0, 6, columns)
    settings = SparseGpt(sparsity, pattern)
    found = settings.sparsify(weight, statistics)
    expected, mask = textbook(weight, statistics.hessian, sparsity or 0.5, settings.groups)
    assert torch.equal(found.mask, mask)
    assert torch.allclose(found.weight.double(), expected, atol=1e-4)


def test_even_inputs_leave_the_weights_that_stay():
    weight, _ = layer(1)
    found = SparseGpt(0.5).sparsify(weight, Statistics(torch.eye(96), 1))
    assert torch.equal(found.weight, weight * found.mask)
    assert float(weight[~found.mask].abs().max()) <= float(weight[found.mask].abs().min())


def test_every_block_loses_its_share():
    weight, statistics = layer(2, 7, 300)
    gone = ~SparseGpt(0.37).sparsify(weight, statistics).mask
    for stop in (128, 256, 300):
        assert int(gone[:, :stop].sum()) == round(0.37 * 7 * stop)


def test_dead_inputs_change_nothing_for_the_others():
    weight, statistics = layer(3, columns=48)
    hessian = torch.zeros(96, 96)
    hessian[::2, ::2] = statistics.hessian
    wide = torch.zeros(12, 96)
    wide[:, ::2] = weight
    alive = SparseGpt(0.5, damping=0.02).sparsify(weight, statistics)
    both = SparseGpt(0.75, damping=0.04).sparsify(wide, Statistics(hessian, 400))  # half the mean, so twice the share
    assert torch.equal(both.mask[:, ::2], alive.mask)
    assert torch.allclose(both.weight[:, ::2], alive.weight, atol=1e-4)
