import pytest
import torch
from tests.compress.prune.cases import layer, weight_and_inputs

from gossamer.compress.prune import Obr, SparseGpt, Wanda, obr
from gossamer.compress.quantize import Gptq
from gossamer.compress.statistics import Statistics


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.5, None), (0.8, None), (None, "2:4")])
@pytest.mark.parametrize("mask", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("tokens", [400, 20])
def test_every_row_is_the_least_squares_fit_under_its_mask(sparsity, pattern, mask, tokens, monkeypatch):
    monkeypatch.setattr(obr, "_ELEMENTS", 3 * 48**2)  # a few rows at a time, the last time fewer
    weight, inputs = weight_and_inputs(0, 10, 48, tokens)
    statistics = Statistics(inputs.T @ inputs / tokens, tokens)
    found = Obr(sparsity, pattern, mask=mask).sparsify(weight, statistics)
    ridge = (0.01 * statistics.hessian.diagonal().mean()).sqrt() * torch.eye(48)
    data = torch.cat([inputs / tokens**0.5, ridge]).double()
    for row, kept, values in zip(weight.double(), found.mask, found.weight, strict=True):
        fit = torch.linalg.lstsq(data[:, kept], (data @ row)[:, None], driver="gelsd").solution[:, 0]
        assert torch.allclose(values[kept].double(), fit, atol=1e-4)


def test_the_mask_is_the_chosen_techniques():
    case = layer(1)
    assert torch.equal(Obr(0.6).sparsify(*case).mask, Wanda(0.6).sparsify(*case).mask)
    assert torch.equal(Obr(0.6, mask="sparsegpt").sparsify(*case).mask, SparseGpt(0.6).sparsify(*case).mask)


def test_even_inputs_leave_the_weights_that_stay():
    weight, _ = layer(2)
    found = Obr(0.5).sparsify(weight, Statistics(torch.eye(96), 1))
    assert torch.allclose(found.weight, weight * found.mask, atol=1e-5)


def test_rounding_errors_go_to_the_weights_that_stay():
    """GPTQ with the mask after OBR loses less than GPTQ after Wanda, and than plain rounding after OBR."""
    for seed in range(4):
        weight, statistics = layer(seed)
        losses = {}
        for pruner in (Wanda(0.5), Obr(0.5)):
            sparse = pruner.sparsify(weight, statistics)
            for name, inputs in (("nearest", None), ("gptq", statistics)):
                rounded = Gptq(4).quantize(sparse.weight, inputs, sparse.mask).tensor.dequantize() * sparse.mask
                losses[type(pruner), name] = statistics.loss(weight - rounded)
        assert losses[Obr, "gptq"] < losses[Wanda, "gptq"]
        assert losses[Obr, "gptq"] < losses[Obr, "nearest"]
