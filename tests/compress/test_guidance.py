"""What tokens weigh: half alike, half by the root mean squared gradient at what a layer reads."""

import numpy as np
import pytest
import torch
from tests.compress.test_apply import opened, step
from tests.models.tiny import BUILDERS

from gossamer.compress import guidance
from gossamer.compress.apply import apply_steps
from gossamer.compress.guidance import weigh_tokens
from gossamer.compress.statistics import Accumulator
from gossamer.compress.structure import outputs
from gossamer.compress.structure.outputs import probe_of
from gossamer.data.batch import Batch
from gossamer.evaluate.tokens import next_token_log_probs
from gossamer.models.structure import read_matrix


def linear(hierarchy):
    return [layer for block in hierarchy.blocks() for layer in block.layers if layer.kind == "linear"]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_every_family_can_be_weighed_and_is_left_as_it_was(family, fast, monkeypatch):
    monkeypatch.setattr(guidance, "multiplies_bfloat16", lambda device: fast)
    model, hierarchy, batches = opened(family)
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    layers = linear(hierarchy)
    (weights,) = weigh_tokens(model, hierarchy, layers, batches)
    assert weights, "no layer was weighed"
    assert set(weights) <= {layer.path for layer in layers}
    for weight in weights.values():
        assert torch.isfinite(weight).all()
        assert (weight >= 0).all()
        assert float(weight.mean()) == pytest.approx(1.0, rel=1e-4)
    assert not any("forward" in module.__dict__ for module in model.modules())
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]
        assert value.grad is None


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_weights_are_those_of_plain_backpropagation(family, monkeypatch):
    """Without checkpoints and row by row in one go; in bfloat16 nearly so."""
    monkeypatch.setattr(guidance, "multiplies_bfloat16", lambda device: False)
    model, hierarchy, batches = opened(family)
    layers = [layer for layer in linear(hierarchy) if layer.index is None]
    (found,) = weigh_tokens(model, hierarchy, layers, batches)
    monkeypatch.setattr(guidance, "multiplies_bfloat16", lambda device: True)
    (nearly,) = weigh_tokens(model, hierarchy, layers, batches)
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        model.get_submodule(layer.module).register_forward_pre_hook(
            lambda _module, args, path=layer.path: args[0].retain_grad() or seen.setdefault(path, []).append(args[0])
        )
        for layer in layers
    ]
    model.requires_grad_(True)
    draw = np.random.default_rng(0)
    for row in range(batches[0].size):
        inputs = {name: value[row : row + 1] for name, value in batches[0].inputs.items()}
        logits, gradient = probe_of(model, Batch(inputs, torch.empty(0), (row,)), draw)
        logits.backward(gradient)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        roots = torch.cat([one.grad.square().mean(-1).sqrt() for one in seen[layer.path]])
        expected = (roots / roots.mean() + 1) / 2
        torch.testing.assert_close(found[layer.path], expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(nearly[layer.path], expected, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("family", ["llama", "gemma2", "whisper", "vit"])
def test_the_probe_is_the_gradient_of_a_signed_sum_of_predictions(family, monkeypatch):
    """The same signs given to autograd, however many places are looked at together."""
    drawn, draw_signs = [], outputs._signs
    monkeypatch.setattr(outputs, "_signs", lambda *args: drawn.append(draw_signs(*args)) or drawn[-1].clone())
    monkeypatch.setattr(outputs, "PLACES", 3)
    model, _, (batch, *_) = opened(family)
    model.requires_grad_(True)
    logits, gradient = probe_of(model, batch, np.random.default_rng(1))
    signs = torch.cat(drawn)
    assert (signs.abs() == 1).all()
    text = family != "vit"
    tokens = batch.inputs.get("decoder_input_ids", batch.inputs.get("input_ids"))
    predictions = next_token_log_probs(logits, tokens) if text else logits
    assert predictions.shape == signs.shape
    (expected,) = torch.autograd.grad((predictions * signs).sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_tokens_that_nothing_depends_on_weigh_least():
    """Predictions end where the labels do, and no later token has a say in them; padding has none either."""
    model, hierarchy, batches = opened("llama")
    tokens = batches[0].inputs["input_ids"]
    labels = torch.full_like(tokens, -100)
    labels[:, 1:4] = tokens[:, 1:4]
    layers = linear(hierarchy)
    (weights,) = weigh_tokens(model, hierarchy, layers, [Batch({"input_ids": tokens}, labels, batches[0].indices)])
    for weight in weights.values():
        assert (weight[:, :3] > 0.5).any()
        assert (weight[:, 3:] == 0.5).all()


def test_weighted_statistics_are_those_of_scaled_inputs():
    torch.manual_seed(0)
    inputs, originals, weights = torch.randn(3, 50, 8), torch.randn(3, 50, 8), torch.rand(3, 50)
    mask = torch.rand(3, 50) > 0.3
    accumulator = Accumulator("a", torch.nn.Linear(8, 2))
    accumulator.add(inputs, mask, originals, weights)
    found = accumulator.finish()
    x, u, w = inputs[mask], originals[mask], weights[mask]
    torch.testing.assert_close(found.hessian, (x * w[:, None]).T @ x / len(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.drift, ((u - x) * w[:, None]).T @ x / len(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.largest, x.abs().amax(0)), "what a layer can meet does not depend on weights"


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_guided_rounding_serves_every_family(family):
    """And it is another rounding than the unguided one, the same each time."""
    weights = []
    for guided in (True, True, False):
        model, hierarchy, batches = opened(family)
        layers = linear(hierarchy)
        towers = sorted({layer.path.partition(".blocks.")[0] for layer in layers})
        steps = [step(f"{tower}.blocks.**", "gptq", bits=3, guided=guided) for tower in towers]
        apply_steps(model, hierarchy, steps, batches)
        weights.append(torch.cat([read_matrix(model, layer).flatten() for layer in layers]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
