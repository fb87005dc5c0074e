"""OmniQuant starts from rounding to nearest and moves the grids' ends for the block's output, or changes nothing."""

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import build
from torch import nn

from gossamer.compress.apply import apply_steps
from gossamer.compress.passes import BlockRun, Polisher, Rounded
from gossamer.compress.quantize import OmniQuant, RoundToNearest
from gossamer.compress.quantize.omniquant import WIDEST, _Clipped
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import PlanError
from gossamer.core.plan import Step
from gossamer.core.technique import build as technique
from gossamer.data.batch import Batch
from gossamer.models.structure import hierarchy_of, read_matrix


def rounded(bits, symmetric, seed=0):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, 32, generator=draw) + 0.3
    weight[0] = 0
    tensor = RoundToNearest(bits, 16, symmetric).quantize(weight, None).tensor
    return Rounded(weight, tensor, Statistics(torch.eye(32), 1))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_starts_from_the_present_grid(bits, symmetric):
    layer = rounded(bits, symmetric)
    one = _Clipped.of(layer)
    found = one.hard()
    assert torch.allclose(found.scales.float(), layer.tensor.scales.float(), rtol=0.02)
    assert float((found.codes != layer.tensor.codes).float().mean()) < 0.05
    assert float(torch.cat([unknown.detach() for unknown in one.unknowns]).max()) < WIDEST + 1e-3
    assert not bool(found.dequantize()[0].any())


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_pass_through_the_rounding_and_what_is_seen_is_what_is_stored(symmetric):
    one = _Clipped.of(rounded(3, symmetric))
    assert torch.allclose(one.soft(), one.hard().dequantize(), rtol=2e-3, atol=1e-6)
    slopes = torch.autograd.grad(one.soft().square().sum(), one.unknowns)
    for slope in slopes:
        assert bool(slope.isfinite().all())
        assert bool((slope[1:] != 0).any(-1).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3])
def test_a_blocks_output_comes_closer(bits, symmetric):
    """One linear layer whose inputs differ much in size: the grids must give up what hardly counts."""
    draw = torch.Generator().manual_seed(1)
    layer = rounded(bits, symmetric)
    inputs = torch.randn(8, 40, 32, generator=draw) * torch.rand(32, generator=draw) ** 4
    block = nn.Linear(32, 16, bias=False).requires_grad_(False)
    block.weight.copy_(layer.tensor.dequantize())
    run = BlockRun((inputs,), {}, inputs @ layer.weight.T, None)
    place = "weight", None
    found = OmniQuant(bits, 16, symmetric, iterations=60, rate=0.02).polish(block, {place: layer}, [run])[place]
    before, after = ((inputs @ (layer.weight - part.dequantize()).T).square().mean() for part in (layer.tensor, found))
    assert float(after) < 0.97 * float(before)
    assert torch.equal(block.weight, layer.tensor.dequantize())


def applied(do, family="llama", **settings):
    torch.manual_seed(0)
    model = build(family, 0)
    inputs = {"input_ids": torch.randint(3, 90, (24, 16))} if family == "llama" else inputs_for(family, model)
    batches = [Batch(inputs, torch.empty(0), tuple(range(len(next(iter(inputs.values()))))))]
    hierarchy = hierarchy_of(model, model.config)
    step = Step.model_validate({"at": "{vision,text,audio,language}.blocks.*", "do": do, **settings})
    return apply_steps(model, hierarchy, [step], batches), model, inputs


def test_the_model_comes_closer_than_by_rounding_and_the_same_bytes_come_again():
    reference = build("llama", 0)
    errors, codes = {}, []
    for do in ("rtn", "omniquant", "omniquant"):
        extra = {} if do == "rtn" else {"iterations": 40, "rate": 0.05}
        done, model, inputs = applied(do, bits=2, **extra)
        errors[do] = float((model(**inputs).logits - reference(**inputs).logits).square().mean())
        codes.append(done.tensors)
    assert errors["omniquant"] < 0.95 * errors["rtn"]
    assert all(torch.equal(codes[1][path].packed(), codes[2][path].packed()) for path in codes[1])


@pytest.mark.parametrize("family", ["owlv2", "whisper", "mamba", "llava", "qwen2_vl"])
def test_other_families(family):
    done, *_ = applied("omniquant", family, bits=8, symmetric=False, iterations=2)
    model = build(family, 0)
    layers = {layer.path: layer for layer in hierarchy_of(model, model.config).layers()}
    assert done.tensors
    for path, tensor in done.tensors.items():
        before = read_matrix(model, layers[path])
        error = tensor.dequantize().reshape(before.shape) - before
        assert error.square().sum() < 0.01 * before.square().sum()


def test_zeros_stay_zeros_before_polishing_and_pruned_layers_are_not_polished():
    weight = torch.randn(8, 32)
    mask = torch.rand(8, 32) > 0.5
    found = OmniQuant(3, 16, symmetric=False).quantize(weight * mask, None, mask)
    assert not bool(found.tensor.dequantize()[~mask].any())
    assert isinstance(OmniQuant(3), Polisher)
    assert not OmniQuant.keeps_zeros


def test_bad_settings_are_refused():
    assert OmniQuant(4).needs == "both models"
    with pytest.raises(PlanError, match="iterations"):
        technique("omniquant", {"bits": 4, "iterations": 0})
    with pytest.raises(PlanError, match="rate"):
        technique("omniquant", {"bits": 4, "rate": 0.0})
