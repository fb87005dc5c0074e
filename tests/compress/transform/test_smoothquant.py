import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import build

from gossamer.compress.passes import Aim
from gossamer.compress.scaling import Reader
from gossamer.compress.statistics import Accumulator, Statistics
from gossamer.compress.transform.smoothquant import Smoothing, SmoothQuant, modelled_error
from gossamer.compress.transform.trial import change, results
from gossamer.core.errors import DataError, PlanError
from gossamer.core.technique import build as technique
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward as run
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.structure import hierarchy_of


def known(inputs):
    return Statistics(inputs.T @ inputs / len(inputs), len(inputs), largest=inputs.abs().amax(0))


def smoothed(name, alpha, seed=0, everywhere=True):
    model = build(name, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    inputs, hierarchy = inputs_for(name, model), hierarchy_of(model, model.config)
    before, weights = results(run(model, inputs)), {key: value.clone() for key, value in model.state_dict().items()}
    layers = [layer for block in hierarchy.blocks() for layer in block.layers]
    smoothing = SmoothQuant(alpha, everywhere)
    notes = smoothing.transform(model, hierarchy, layers, [Batch(inputs, torch.empty(0), (0, 1))], {})
    return model, change(before, results(run(model, inputs))), weights, notes


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "llava", "qwen2_vl", "vit", "whisper", "bert"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, None])
def test_the_function_stays_and_weights_move(name, alpha):
    model, changed, weights, _ = smoothed(name, alpha)
    assert changed < 1e-5
    assert any(not torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_only_what_norms_write_is_smoothed_unless_asked():
    for everywhere in (False, True):
        model, changed, weights, notes = smoothed("llama", 0.5, everywhere=everywhere)
        assert changed < 1e-5
        assert notes == ()
        moved = {key for key, value in model.state_dict().items() if not torch.equal(value, weights[key])}
        block = {key.removeprefix("model.layers.0.") for key in moved if key.startswith("model.layers.0.")}
        after_norms = {"input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
        after_norms |= {"post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj"}
        expected = after_norms | ({"self_attn.o_proj", "mlp.down_proj"} if everywhere else set())
        assert block == {f"{name}.weight" for name in expected}


def test_the_formula_on_a_case_by_hand():
    inputs, weight = torch.tensor([[8.0, 1.0], [-2.0, -4.0]]), torch.tensor([[0.5, 1.0], [-2.0, 0.25]])
    sources = torch.arange(2)
    found = Smoothing(0.5).scales([Reader("a", weight, known(inputs), sources)], 2)
    torch.testing.assert_close(found, torch.tensor([(8 / 2) ** 0.5, (4 / 1) ** 0.5]))
    torch.testing.assert_close((inputs / found).abs().amax(0), (weight * found).abs().amax(0))
    found = Smoothing(1.0).scales([Reader("a", weight, known(inputs), sources)], 2)
    torch.testing.assert_close(found, torch.tensor([8.0, 4.0]))


def test_the_largest_inputs_are_gathered_without_padding():
    inputs, mask = torch.randn(4, 1500, 6), torch.rand(4, 1500) < 0.7
    accumulator = Accumulator("a", torch.nn.Linear(6, 3))
    for part, real in zip(inputs, mask, strict=True):
        accumulator.add(part[None], real[None])
    assert torch.equal(accumulator.finish().largest, inputs[mask].abs().amax(0))


@pytest.mark.parametrize("sizes", [[7], [5000], [900, 3, 2000, 1], [64] * 40])
def test_a_sample_is_spread_over_all_inputs_however_they_come(sizes):
    inputs = torch.arange(float(sum(sizes)))[:, None].expand(-1, 2)
    accumulator = Accumulator("a", 2)
    for part in inputs.split(sizes):
        accumulator.add(part)
    sample = accumulator.finish().sample[:, 0]
    steps = sample.diff().unique()
    assert len(steps) == 1
    assert len(sample) <= 513
    assert sample[0] == 0
    assert sample[-1] + float(steps[0]) >= len(inputs) - 1
    assert len(sample) >= min(200, len(inputs))


def test_layers_that_read_one_producer_share_the_largest():
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    inputs = known(torch.tensor([[4.0, 9.0]]))
    found = Smoothing(0.0).scales([Reader("a", weight, inputs, torch.arange(2)) for weight in (one, other)], 2)
    torch.testing.assert_close(found, torch.tensor([1 / 3, 1 / 2]))


def test_channels_without_input_weight_or_reader_stay():
    inputs = known(torch.tensor([[0.0, 3.0, 2.0]]))
    weight = torch.tensor([[1.0, 0.0, 2.0]])
    found = Smoothing(0.5).scales([Reader("a", weight, inputs, torch.tensor([0, 1, 3]))], 5)
    assert found.tolist() == [1, 1, 1, 1, 1]


def rounding_error(inputs, weight, factors, aim):
    """The mean squared error of products with inputs on an 8-bit grid for each token and weights on the aim's."""
    step = (inputs / factors).abs().amax(1, keepdim=True) / 127.5
    rounded = (inputs / factors / step).round().clamp(-128, 127) * step
    scales = (weight * factors).reshape(len(weight), aim.weight.groups(weight.shape[1]), -1).abs().amax(-1)
    scales = (scales * 2 / (2**aim.weight.bits - 1)).half()
    grid = QuantizedTensor.encode(weight * factors, aim.weight, scales).dequantize()
    return float((rounded @ grid.T - inputs @ weight.T).square().mean())


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4), Scheme(4, 16)], ids=str)
def test_learnt_factors_lose_less_than_those_of_every_alpha(scheme):
    generator = torch.Generator().manual_seed(scheme.bits)
    inputs = torch.randn(400, 64, generator=generator) * torch.logspace(-1, 1.5, 64)
    inputs[::7, 3] *= 30
    weight = torch.randn(48, 64, generator=generator) * torch.rand(64, generator=generator)
    found, aim = Accumulator("a", 64), Aim(scheme, None)
    found.add(inputs)
    smoothing = {alpha: Smoothing(alpha, {"a": aim}) for alpha in (None, 0.3, 0.5, 0.65, 0.8)}
    errors = {}
    for alpha, each in smoothing.items():
        factors = each.scales([Reader("a", weight, found.finish(), torch.arange(64))], 64)
        errors[alpha] = rounding_error(inputs, weight, factors, aim)
    errors["none"] = rounding_error(inputs, weight, torch.ones(64), aim)
    assert errors.pop(None) < 0.95 * min(errors.values())


def test_the_modelled_error_goes_as_the_measured_one():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(500, 32, generator=generator) * torch.logspace(-1, 1, 32)
    weight, aim = torch.randn(40, 32, generator=generator), Aim(Scheme(8), None)
    found = Accumulator("a", 32)
    found.add(inputs)
    reader = Reader("a", weight, found.finish(), torch.arange(32))
    ratios = []
    for alpha in (0.0, 0.4, 0.7, 1.0):
        factors = inputs.abs().amax(0) ** alpha
        ratios.append(rounding_error(inputs, weight, factors, aim) / float(modelled_error(reader, aim, factors)))
    assert max(ratios) < 1.2 * min(ratios)


def test_layers_without_a_link_are_named():
    _, _, _, notes = smoothed("llama", 0.5)
    assert notes == ()
    _, _, _, notes = smoothed("bert", 0.5)
    assert any("query" in note and "not smoothed" in note for note in notes)


def test_bad_settings():
    with pytest.raises(PlanError, match=r"alpha cannot be 1\.5"):
        technique("smoothquant", {"alpha": 1.5})
    model = build("llama")
    hierarchy = hierarchy_of(model, model.config)
    with pytest.raises(DataError, match="calibration data"):
        SmoothQuant().transform(model, hierarchy, hierarchy.select("language.**"), [], {})
