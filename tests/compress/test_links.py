"""Links are found by doubling, not by names: what is known of a family must come out, and the function must stay."""

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import BUILDERS, build

from gossamer.compress.apply import apply_steps
from gossamer.compress.links import columns_of, find_links
from gossamer.core.plan import Step
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.structure import hierarchy_of


def opened(name):
    torch.manual_seed(0)
    model = build(name)
    with torch.no_grad():  # fresh norms are all 1 and biases 0, which would hide mistakes
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape)) if "norm" in parameter_name else None
    inputs = inputs_for(name, model)
    hierarchy = hierarchy_of(model, model.config)
    return model, hierarchy, Walk(model, hierarchy, inputs), inputs


def links_of(model, walk, inputs):
    entry = walk.start(inputs)
    for number, stage in enumerate(walk.stages):
        yield stage, find_links(model, walk, entry, stage.block)
        if number + 1 < len(walk.stages):
            entry = walk.advance(entry, inputs)


def test_the_links_of_a_llama_block():
    model, _, walk, inputs = opened("llama")
    heads, kept = model.config.num_attention_heads, model.config.num_key_value_heads
    assert heads > kept, "the map through grouped heads is what makes this interesting"
    for stage, links in links_of(model, walk, inputs):
        prefix = stage.block.module + "."
        found = {
            link.producer.removeprefix(prefix): [layer.module.removeprefix(prefix) for layer in link.consumers]
            for link in links
        }
        assert found == {
            "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "self_attn.v_proj": ["self_attn.o_proj"],
            "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
            "mlp.up_proj": ["mlp.down_proj"],
        }
        value = next(link for link in links if link.producer.endswith("v_proj"))
        size = value.channels // kept
        expected = torch.arange(value.channels).reshape(kept, 1, size).expand(kept, heads // kept, size)
        assert torch.equal(value.sources[0], expected.reshape(-1))


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_folding_any_factors_keeps_every_familys_function(name):
    model, _, walk, inputs = opened(name)
    reference = walk.finish(None, inputs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = [link for _, links in links_of(model, walk, inputs) for link in links]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "looking changed a weight"
    for link in found:
        link.fold(model, torch.rand(link.channels) * 3 + 0.2)
    changed = walk.finish(None, inputs)
    for key in ("logits", "logits_per_image", "last_hidden_state", "pred_boxes"):
        if reference.get(key) is not None:
            scale = float(reference[key].abs().max())
            assert torch.allclose(reference[key], changed[key], atol=2e-4 * max(scale, 1)), key
    if name in ("llama", "qwen2_vl", "llava", "vit", "clip", "owlv2", "whisper", "siglip"):
        assert len(found) >= 2 * len(walk.stages)


def test_nothing_is_linked_where_the_residual_stream_reads_along():
    """BERT's norms come after the sum, so what they write goes on in the residual stream too."""
    model, _, walk, inputs = opened("bert")
    producers = {link.producer.split(".")[-1] for _, links in links_of(model, walk, inputs) for link in links}
    assert "LayerNorm" not in producers
    assert "value" in producers


def test_columns_without_a_source_stay():
    assert columns_of(torch.tensor([2.0, 4.0]), torch.tensor([1, -1, 0])).tolist() == [4.0, 1.0, 2.0]


@pytest.mark.parametrize("name", ["llama", "llava", "whisper", "mixtral"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_awq_keeps_most_of_the_function_at_eight_bits(name, rounding):
    model, hierarchy, walk, inputs = opened(name)
    reference = walk.finish(None, inputs).logits
    batch = Batch(inputs, torch.empty(0), tuple(range(next(iter(inputs.values())).shape[0])))
    layers = [layer for layer in hierarchy.layers() if layer.kind == "linear" and layer.tied_to is None]
    steps = [
        Step.model_validate({"at": layer.path, "do": "awq", "bits": 8, "steps": 4, "rounding": rounding})
        for layer in layers
    ]
    done = apply_steps(model, hierarchy, steps, [batch])
    assert set(done.tensors) == {layer.path for layer in layers}
    error = (walk.finish(None, inputs).logits - reference).norm() / reference.norm()
    assert float(error) < 0.05
