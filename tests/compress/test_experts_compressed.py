"""Single experts as layers of compression: their own statistics, their own settings, and a fallback for the idle."""

import pytest
import torch
from tests.compress.test_apply import opened, step

from gossamer.compress.apply import apply_steps
from gossamer.compress.calibrate import Stream, collect
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.structure import read_matrix

EXPERTS = "language.blocks.*.mlp.experts.**"


def batches_of(tokens, mask=None):
    inputs = {"input_ids": tokens} if mask is None else {"input_ids": tokens, "attention_mask": mask}
    return [Batch(inputs, torch.empty(0), tuple(range(len(tokens))))]


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_statistics_are_over_the_tokens_that_the_router_sends(name):
    model, hierarchy, _ = opened(name)
    tokens = torch.randint(3, 90, (3, 12), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    batches = batches_of(tokens, mask)
    caught = []
    block = model.model.layers[0].mlp
    handle = block.experts.register_forward_pre_hook(lambda _, args: caught.append(args))
    model(**batches[0].inputs)
    handle.remove()
    (hidden, chosen, _) = caught[0]
    walk = Walk(model, hierarchy, batches[0].inputs)
    stream = Stream(walk, batches)
    stream.advance()
    found = collect(model, stream, walk.stages[0].block.layers)
    real = mask.reshape(-1).bool()
    reached = 0
    for index in range(4):
        sent = (chosen == index).any(1) & real
        path = f"language.blocks.0.mlp.experts.{index}"
        if not sent.any():
            assert f"{path}.gate_up_proj" not in found
            continue
        reached += 1
        rows = hidden[sent].double()
        gate, up = (hidden[sent] @ block.experts.gate_up_proj[index].T).chunk(2, -1)
        inner = (torch.nn.functional.silu(gate) * up).double()
        for layer, inputs in (("gate_up_proj", rows), ("down_proj", inner)):
            statistics = found[f"{path}.{layer}"]
            assert statistics.tokens == len(rows)
            assert torch.allclose(statistics.hessian.double(), inputs.T @ inputs / len(rows), atol=1e-6)
    assert reached > 1


def test_experts_take_settings_of_their_own_and_calibration_helps_them():
    errors = {}
    for do in ("rtn", "gptq", "qronos"):
        model, hierarchy, _ = opened("mixtral")
        batches = batches_of(torch.randint(3, 90, (16, 32), generator=torch.Generator().manual_seed(5)))
        wanted = model(**batches[0].inputs).logits
        done = apply_steps(
            model,
            hierarchy,
            [step(EXPERTS, do, bits=3), step("language.blocks.0.mlp.experts.2", do, bits=5)],
            batches,
        )
        assert len(done.tensors) == 16
        for layer in hierarchy.select(EXPERTS):
            bits = 5 if layer.path.startswith("language.blocks.0.mlp.experts.2.") else 3
            assert done.tensors[layer.path].scheme.bits == bits
            assert torch.equal(read_matrix(model, layer), done.tensors[layer.path].dequantize())
        errors[do] = float((model(**batches[0].inputs).logits - wanted).square().mean())
    assert errors["gptq"] < errors["rtn"]
    assert errors["qronos"] < errors["rtn"]


def test_an_expert_without_tokens_is_rounded_and_named():
    model, hierarchy, _ = opened("mixtral")
    batches = batches_of(torch.tensor([[7]]))  # one token goes to two of the four experts
    chosen = []
    handle = model.model.layers[0].mlp.gate.register_forward_hook(lambda _, __, out: chosen.extend(out[2][0].tolist()))
    model(**batches[0].inputs)
    handle.remove()
    rounded = apply_steps(*opened("mixtral")[:2], [step(EXPERTS, "rtn", bits=4)], []).tensors
    done = apply_steps(model, hierarchy, [step(EXPERTS, "gptq", bits=4)], batches)
    [note] = [note for note in done.notes if "no calibration token is sent to" in note]
    for index in {0, 1, 2, 3} - set(chosen):
        for name in ("gate_up_proj", "down_proj"):
            path = f"language.blocks.0.mlp.experts.{index}.{name}"
            assert torch.equal(done.tensors[path].codes, rounded[path].codes)
        assert f"language.blocks.0.mlp.experts.{index}.gate_up_proj" in note
    path = f"language.blocks.0.mlp.experts.{chosen[0]}.gate_up_proj"
    assert path not in note
    assert not torch.equal(done.tensors[path].codes, rounded[path].codes)


def test_healing_moves_the_scales_of_experts():
    def louder():
        model, hierarchy, _ = opened("qwen3_moe")
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
        return model, hierarchy

    draw = torch.Generator().manual_seed(6)
    batches = [batch for _ in range(8) for batch in batches_of(torch.randint(3, 90, (8, 16), generator=draw))]
    rounding = step(EXPERTS, "rtn", bits=2)
    before = apply_steps(*louder(), [rounding], [])
    model, hierarchy = louder()
    done = apply_steps(model, hierarchy, [rounding, step("language.**", "heal", steps=16)], batches)
    assert any("healing took the held-out loss" in note for note in done.notes), done.notes
    moved = [path for path in done.tensors if not torch.equal(done.tensors[path].scales, before.tensors[path].scales)]
    assert len(moved) > 4
    for layer in hierarchy.select(EXPERTS):
        assert torch.equal(read_matrix(model, layer), done.tensors[layer.path].dequantize())
