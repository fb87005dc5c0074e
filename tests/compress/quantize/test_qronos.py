"""Qronos aims at what the unchanged model gives, from inputs that earlier layers have already changed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.feeds import inputs_for
from tests.models.tiny import build
from torch import nn

from gossamer.compress.apply import apply_steps
from gossamer.compress.calibrate import Stream, layers_by_step, pass_through
from gossamer.compress.quantize import Gptq, Qronos
from gossamer.compress.statistics import Accumulator, Statistics
from gossamer.core.plan import Step
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.structure import hierarchy_of


def problem(seed=0, rows=16, columns=64, tokens=2000, noise=0.3):
    """A weight, the unchanged inputs u and the disturbed ones x, (tokens, columns)."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=draw) * torch.rand(columns, generator=draw).square() * 2
    unchanged = torch.randn(tokens, columns, generator=draw) @ mixing
    disturbed = unchanged + noise * torch.randn(tokens, columns, generator=draw) @ mixing.roll(1, 0)
    return torch.randn(rows, columns, generator=draw), unchanged, disturbed


def statistics_of(unchanged, disturbed, chunk=300):
    accumulator = Accumulator("layer", nn.Linear(unchanged.shape[1], 1))
    for u, x in zip(unchanged.split(chunk), disturbed.split(chunk), strict=True):
        accumulator.add(x, unchanged=u)
    return accumulator.finish()


def target_of(weight, statistics, damping, act_order=True):
    return statistics.target(weight, statistics.factor(damping, act_order))


def test_statistics_of_both_models():
    _, unchanged, disturbed = problem()
    found = statistics_of(unchanged, disturbed)
    assert torch.allclose(found.drift, (unchanged - disturbed).T @ disturbed / 2000, rtol=1e-3, atol=1e-3)
    assert torch.allclose(found.hessian, disturbed.T @ disturbed / 2000, rtol=1e-3, atol=1e-3)
    mask = torch.arange(2000).reshape(4, 500) % 3 > 0
    accumulator = Accumulator("layer", nn.Linear(64, 1))
    accumulator.add(disturbed.reshape(4, 500, 64), mask, unchanged.reshape(4, 500, 64))
    kept = mask.flatten()
    expected = (unchanged - disturbed)[kept].T @ disturbed[kept] / int(kept.sum())
    assert torch.allclose(accumulator.finish().drift, expected, rtol=1e-3, atol=1e-3)


def test_the_target_is_the_regression_and_the_weight_itself_without_disturbance():
    weight, unchanged, disturbed = problem()
    target = target_of(weight, statistics_of(unchanged, disturbed), 1e-5)
    wanted = (unchanged @ weight.T).double()
    best = torch.linalg.lstsq(disturbed.double(), wanted).solution
    least, found, before = (
        float((disturbed.double() @ w - wanted).square().mean()) for w in (best, target.T.double(), weight.T.double())
    )
    assert least <= found < least + 0.05 * (before - least)
    assert torch.equal(target_of(weight, statistics_of(unchanged, unchanged), 0.01), weight)
    alone = Statistics(torch.eye(64), 1)
    assert alone.target(weight, alone.factor(0.01, True)) is weight
    assert statistics_of(unchanged, disturbed).target(weight, None) is weight


@settings(max_examples=25)
@given(st.integers(0, 999), st.sampled_from([1, 64, 600]), st.sampled_from([1e-3, 0.3]), st.booleans(), st.booleans())
def test_the_target_in_float32_is_the_formulas_in_float64(seed, tokens, damping, act_order, dead):
    """Also for fewer tokens than inputs, inputs a thousand times as large as others, and inputs never active."""
    weight, unchanged, disturbed = problem(seed, tokens=tokens)
    sizes = 10 ** torch.linspace(-1.5, 1.5, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(seed))]
    if dead:
        sizes[seed % 64] = 0
    found = statistics_of(unchanged * sizes, disturbed * sizes)
    hessian, drift = found.hessian.double(), found.drift.double()
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(64)
    expected = weight.double() + torch.linalg.solve(damped, (weight.double() @ drift).T).T

    def size(part):  # what the regression makes small
        return float(((part @ damped) * part).sum().sqrt())

    assert size(target_of(weight, found, damping, act_order) - expected) < 1e-3 * size(expected - weight)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_outputs_are_closer_to_the_unchanged_layers_than_gptqs(bits, symmetric):
    weight, unchanged, disturbed = problem(bits)
    statistics = statistics_of(unchanged, disturbed)
    errors = {}
    for technique in (Gptq, Qronos):
        found = technique(bits, 16, symmetric, damping=0.01).quantize(weight, statistics).tensor.dequantize()
        errors[technique] = float((disturbed @ found.T - unchanged @ weight.T).square().mean())
    assert errors[Qronos] < errors[Gptq]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_default_damping_keeps_a_short_calibration_set_from_being_fitted_too_well(bits):
    errors = {}
    for damping in (Qronos.damping, Gptq.damping):
        errors[damping] = 0.0
        for seed in range(4):
            weight, unchanged, disturbed = problem(seed, tokens=1000)
            statistics = statistics_of(unchanged[:80], disturbed[:80])
            found = Qronos(bits, 16, damping=damping).quantize(weight, statistics).tensor.dequantize()
            errors[damping] += float((disturbed[80:] @ found.T - unchanged[80:] @ weight.T).square().mean())
    assert errors[Qronos.damping] < errors[Gptq.damping]


def test_first_layers_agree_with_gptq_and_later_ones_bring_the_model_closer():
    torch.manual_seed(0)
    tokens = torch.randint(3, 90, (48, 24))
    batches = [Batch({"input_ids": part}, part, tuple(range(8))) for part in tokens[:40].split(8)]
    held, outputs, codes = tokens[40:], {}, {}
    for name in ("gptq", "qronos"):
        model = build("llama", 0)
        reference = model(input_ids=held).logits
        hierarchy = hierarchy_of(model, model.config)
        step = Step.model_validate({"at": "language.blocks.*", "do": name, "bits": 3, "damping": 0.01, "guided": False})
        codes[name] = apply_steps(model, hierarchy, [step], batches).tensors
        outputs[name] = float((model(input_ids=held).logits - reference).square().mean())
    first = "language.blocks.0.self_attn.q_proj"
    assert torch.equal(codes["gptq"][first].codes, codes["qronos"][first].codes)
    assert outputs["qronos"] < outputs["gptq"]


@pytest.mark.parametrize("name", ["llava", "owlv2", "whisper", "qwen3_vl", "mamba", "mixtral"])
def test_both_models_walk_together(name):
    """As long as nothing is changed, nothing drifts."""
    torch.manual_seed(0)
    model = build(name)
    inputs = inputs_for(name, model)
    hierarchy = hierarchy_of(model, model.config)
    batch = Batch(inputs, torch.empty(0), tuple(range(next(iter(inputs.values())).shape[0])))
    walk = Walk(model, hierarchy, inputs)
    stream, unchanged = Stream(walk, [batch]), Stream(walk, [batch])
    met = {}
    for step, layers in sorted(layers_by_step(walk, hierarchy).items()):
        assert stream.step == unchanged.step == step
        linear = [layer for layer in layers if layer.kind == "linear"]
        pass_through(model, stream, linear, lambda layer, found: met.update({layer.path: found}), unchanged)
    known = [found for found in met.values() if found is not None]
    assert known
    for found in known:
        assert torch.allclose(found.drift, torch.zeros(()), atol=1e-5)
