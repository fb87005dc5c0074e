"""Experts run one by one: the same result as the model's own forward, with every input and output in sight."""

import pytest
import torch
import transformers as hf
from tests.models.tiny import build

from gossamer.engine.experts import one_by_one, runs_one_by_one
from gossamer.engine.looking import looking
from gossamer.models.structure import hierarchy_of, read_matrix

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def gpt_oss():
    """Input-major weights, biases, gate and up interleaved."""
    torch.manual_seed(0)
    config = hf.GptOssConfig(
        vocab_size=96, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = hf.GptOssForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    return model


def nemotron_h():
    """Experts without a gate."""
    torch.manual_seed(0)
    config = hf.NemotronHConfig(
        vocab_size=96, hidden_size=16, layers_block_type=["moe", "attention"], num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
        moe_shared_expert_intermediate_size=12, mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=4, n_groups=1,
    )  # fmt: skip
    return hf.NemotronHForCausalLM(config).eval().requires_grad_(False)


MODELS = {
    "mixtral": lambda: build("mixtral"),
    "qwen2_moe": lambda: build("qwen2_moe"),
    "qwen3_moe": lambda: build("qwen3_moe"),
    "gpt_oss": gpt_oss,
    "nemotron_h": nemotron_h,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_computes_what_its_own_forward_does(name):
    model = MODELS[name]()
    modules = {path: module for path, module in model.named_modules() if runs_one_by_one(module)}
    assert modules
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        for implementation in ("eager", "batched_mm"):
            model.config._experts_implementation = implementation
            assert torch.allclose(model(input_ids=IDS).logits, wanted, atol=1e-5)
        calls = []
        for module in modules.values():
            with one_by_one(module, lambda *found: calls.append(found)):
                assert torch.allclose(model(input_ids=IDS).logits, wanted, atol=1e-5)
            assert "forward" not in vars(module)
    layers = {(layer.parameter, layer.index): layer for layer in hierarchy_of(model, model.config).layers()}
    for parameter, index, inputs, routed in calls:
        assert inputs.shape == (len(routed.tokens), layers[parameter, index].columns)
        assert routed.count == IDS.numel()


def test_what_is_seen_is_what_the_router_sent_and_what_each_expert_gave():
    model = build("mixtral")
    block = model.model.layers[0].mlp
    hidden = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(2))
    read, written = [], []
    with torch.no_grad(), one_by_one(block.experts, lambda *f: read.append(f), lambda *f: written.append(f)):
        whole = block(hidden)
    _, weights, chosen = block.gate(hidden[0])
    total = torch.zeros(12, 16)
    for (_, index, inputs, routed), (_, _, inner, _), (_, outputs, _) in zip(
        read[::2], read[1::2], written, strict=True
    ):
        sent = (chosen == index).any(1).nonzero()[:, 0]
        assert torch.equal(routed.tokens, sent)
        assert torch.equal(inputs, hidden[0, sent])
        assert torch.equal(routed.weights, weights[chosen == index])
        gate, up = (inputs @ block.experts.gate_up_proj[index].T).chunk(2, -1)
        assert torch.allclose(inner, torch.nn.functional.silu(gate) * up, atol=1e-6)
        assert torch.allclose(outputs, inner @ block.experts.down_proj[index].T, atol=1e-6)
        total[sent] += outputs * routed.weights[:, None]
    assert torch.allclose(whole[0], total, atol=1e-6)


def test_looking_sees_plain_layers_and_experts_alike_and_may_change_them():
    model = build("qwen2_moe")
    hierarchy = hierarchy_of(model, model.config)
    layers = hierarchy.select("language.blocks.0.mlp.**")
    seen = {}

    def look(layer, inputs, routed):
        seen[layer.path] = routed
        read_matrix(model, layer).zero_()

    with torch.no_grad(), looking(model, layers, look) as anything:
        output = model.model.layers[0].mlp(torch.randn(1, 40, 16))
    assert anything
    assert set(seen) == {layer.path for layer in layers}
    assert all((routed is None) != (".experts." in path) for path, routed in seen.items())
    assert not output.any(), "weights changed on the way count at once"
    with looking(model, hierarchy.select("embeddings.**"), look) as anything:
        assert not anything
