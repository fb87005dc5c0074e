import math

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gossamer.compress.statistics import Accumulator
from gossamer.core.errors import DataError, PlanError


def gathered(layer: nn.Module, *batches: Tensor, mask: Tensor | None = None) -> Tensor:
    accumulator = Accumulator("language.blocks.0.layer", layer)
    for batch in batches:
        accumulator.add(batch, mask)
    return accumulator.finish().hessian


def test_batches_of_unequal_length_weigh_by_tokens() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(23, 300)
    accumulator = Accumulator("a", nn.Linear(300, 4))
    for part in inputs.split([1, 15, 7]):
        accumulator.add(part.unsqueeze(0))
    statistics = accumulator.finish()
    assert statistics.tokens == 23
    torch.testing.assert_close(statistics.hessian, inputs.T @ inputs / 23, rtol=1e-5, atol=1e-5)
    assert torch.equal(statistics.hessian, statistics.hessian.T)


def test_inputs_may_be_written_over_afterwards() -> None:
    accumulator = Accumulator("a", nn.Linear(8, 3))
    inputs = torch.randn(5, 8)
    expected = inputs.T @ inputs / 5
    accumulator.add(inputs)
    inputs.zero_()
    torch.testing.assert_close(accumulator.finish().hessian, expected)


def test_many_small_batches_equal_one_large() -> None:
    inputs = torch.randn(6000, 8)
    one, many = Accumulator("a", nn.Linear(8, 3)), Accumulator("a", nn.Linear(8, 3))
    one.add(inputs)
    for part in inputs.split(700):
        many.add(part)
    assert many.finish().tokens == 6000
    torch.testing.assert_close(many.finish().hessian, one.finish().hessian, rtol=1e-5, atol=1e-5)


def test_loss_is_the_mean_squared_output() -> None:
    inputs, error = torch.randn(900, 600), torch.randn(5, 600)
    accumulator = Accumulator("a", nn.Linear(600, 5))
    accumulator.add(inputs)
    expected = float((inputs @ error.T).square().sum(1).mean())
    assert accumulator.finish().loss(error) == pytest.approx(expected, rel=1e-4)


def test_padding_does_not_count() -> None:
    inputs = torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    padded = inputs.masked_fill(~mask.unsqueeze(-1), 1e3)
    expected = gathered(nn.Linear(8, 3), inputs[0, :3], inputs[1])
    torch.testing.assert_close(gathered(nn.Linear(8, 3), padded, mask=mask), expected)
    torch.testing.assert_close(gathered(nn.Linear(8, 3), padded.reshape(10, 8), mask=mask), expected)


def test_input_major_linear_layers() -> None:
    inputs = torch.randn(2, 5, 8)
    torch.testing.assert_close(gathered(Conv1D(3, 8), inputs), gathered(nn.Linear(8, 3), inputs))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 4, stride=4),
        nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0)),
        nn.Conv2d(3, 5, 3, padding="same", dilation=2),
        nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(3, 5, 3, stride=2, padding=1),
    ],
)
def test_convolutions_equal_their_matrix_form(layer: nn.Conv2d | nn.Conv1d) -> None:
    """The mean squared output that H predicts is the one the convolution itself makes."""
    torch.manual_seed(1)
    layer.bias = None
    inputs = torch.randn(4, 3, *([11] * len(layer.kernel_size)))
    accumulator = Accumulator("a", layer)
    accumulator.add(inputs)
    statistics = accumulator.finish()
    outputs = layer(inputs).detach()
    matrix = layer.weight.detach().reshape(5, -1)
    positions = outputs.numel() // 5
    assert statistics.tokens == positions
    assert statistics.loss(matrix) == pytest.approx(float(outputs.square().sum()) / positions, rel=1e-4)
    alone = Accumulator("a", layer)
    alone.add(inputs[0])
    alone.add(inputs[1:])
    torch.testing.assert_close(alone.finish().hessian, statistics.hessian)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_inputs_that_are_not_finite_name_the_layer(bad: float) -> None:
    inputs = torch.randn(4, 300)
    inputs[2, 280] = bad
    with pytest.raises(DataError, match=r"language\.blocks\.0\.layer"):
        gathered(nn.Linear(300, 2), inputs)


def test_what_has_no_hessian_says_so() -> None:
    with pytest.raises(DataError, match="no calibration input"):
        gathered(nn.Linear(8, 2))
    with pytest.raises(DataError, match="no calibration input"):
        gathered(nn.Linear(8, 2), torch.zeros(0, 8))
    with pytest.raises(PlanError, match="Embedding"):
        Accumulator("a", nn.Embedding(4, 4))
    with pytest.raises(PlanError, match="channel groups"):
        Accumulator("a", nn.Conv1d(4, 4, 3, groups=4))
