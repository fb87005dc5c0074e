"""Experts go: the criteria are the papers', what is left computes what the whole does without them, and it reloads."""

import pytest
import torch
from tests.compress.test_apply import opened, step
from tests.models.tiny import build

from gossamer.compress.apply import apply_steps
from gossamer.compress.presets import preset_steps
from gossamer.compress.structure.prune_experts import PruneExperts, importance
from gossamer.core.errors import DataError, PlanError
from gossamer.data.batch import Batch
from gossamer.models.reloading import plain
from gossamer.models.structure import hierarchy_of, read_matrix

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")


def batches_of(seed=3, rows=6):
    tokens = torch.randint(3, 90, (rows, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens)
    mask[0, 5:] = 0
    return [Batch({"input_ids": tokens, "attention_mask": mask}, torch.empty(0), tuple(range(rows)))]


def with_experts(model, hierarchy):
    return [block for block in hierarchy.blocks() if any(layer.index is not None for layer in block.layers)]


def caught(model, inputs):
    """(hidden, chosen, weights) of each experts module, by its path."""
    found, handles = {}, []
    for path, module in model.named_modules():
        if type(module).__name__.endswith("Experts"):
            handles.append(module.register_forward_pre_hook(lambda _, args, p=path: found.setdefault(p, args)))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def expert(module, index, hidden):
    gate, up = (hidden @ module.gate_up_proj[index].T).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up) @ module.down_proj[index].T


@pytest.mark.parametrize("name", FAMILIES)
def test_the_criteria_by_hand(name):
    model, hierarchy, _ = opened(name)
    batches = batches_of()
    blocks = with_experts(model, hierarchy)
    reap, frequency = (importance(model, blocks, kind, batches) for kind in ("reap", "frequency"))
    real = batches[0].inputs["attention_mask"].reshape(-1).bool()
    assert reap.keys() == frequency.keys() == {block.path for block in blocks}
    for path, (hidden, chosen, weights) in caught(model, batches[0].inputs).items():
        block = next(block.path for block in blocks if path.startswith(block.module + "."))
        for index in range(4):
            sent = (chosen == index).any(1) & real
            assert int(frequency[block][index]) == int(sent.sum())
            if not sent.any():
                assert reap[block][index] == 0
                continue
            size = expert(model.get_submodule(path), index, hidden[sent]).norm(dim=-1)
            gate = (weights * (chosen == index)).sum(1)[sent]
            assert float(reap[block][index]) == pytest.approx(float((size * gate).mean()), rel=1e-4)


@pytest.mark.parametrize("criterion", ["reap", "frequency"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_computes_what_the_whole_does_without_them(name, criterion, tmp_path):
    model, hierarchy, _ = opened(name)
    batches = batches_of()
    blocks = with_experts(model, hierarchy)
    scores = importance(model, blocks, criterion, batches)
    whole = build(name)
    hooks = []
    for block in blocks:
        least = int(scores[block.path].argmin())
        gate = whole.get_submodule(f"{block.module}.mlp.gate")

        def without(router, args, _output, least=least):
            """The router as its family writes it, over the logits of the experts that stay."""
            logits = args[0].reshape(-1, 16) @ router.weight.T
            logits[:, least] = -torch.inf
            weights, chosen = logits.softmax(-1).topk(2, dim=-1)
            if name == "mixtral" or getattr(router, "norm_topk_prob", False):
                weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights, chosen

        hooks.append(gate.register_forward_hook(without))
    wanted = whole(**batches[0].inputs).logits
    before = sum(parameter.numel() for parameter in model.parameters())
    left = PruneExperts(keep=0.75, criterion=criterion).reshape(
        model, hierarchy, hierarchy.modalities[1].blocks, batches
    )
    assert torch.allclose(model(**batches[0].inputs).logits, wanted, atol=1e-6)
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    config = model.config.to_dict()
    assert config.get("num_local_experts", config.get("num_experts")) == 3
    for block in blocks:
        least = int(scores[block.path].argmin())
        numbers = {
            layer.path.split(".")[-2] for layer in left.layers() if layer.path.startswith(f"{block.path}.mlp.exp")
        }
        assert numbers == {"0", "1", "2", "3"} - {str(least)}, "those that stay keep their numbers"
        assert model.get_parameter(f"{block.module}.mlp.gate.weight").shape == (3, 16)
    original = build(name)
    first = {layer.path: layer for layer in hierarchy_of(original, original.config).layers()}
    for layer in left.layers():
        assert torch.equal(read_matrix(model, layer), read_matrix(original, first[layer.path]))
    model.save_pretrained(tmp_path)
    again = plain(tmp_path).eval()
    assert torch.equal(again(**batches[0].inputs).logits, model(**batches[0].inputs).logits)


def test_later_steps_speak_of_the_original_experts():
    model, hierarchy, _ = opened("mixtral")
    batches = batches_of()
    steps = [step("language.blocks.*", "prune_experts", keep=0.5)]
    steps += [step(f"language.blocks.*.mlp.experts.{number}", "rtn", bits=2 + number) for number in range(4)]
    done = apply_steps(model, hierarchy, steps, batches)
    assert len(done.tensors) == 2 * 2 * 2
    for path, tensor in done.tensors.items():
        assert tensor.scheme.bits == 2 + int(path.split(".")[-2])
    layers = {layer.path: layer for layer in done.hierarchy.layers()}
    for path, tensor in done.tensors.items():
        assert torch.equal(read_matrix(model, layers[path]), tensor.dequantize())


def test_a_preset_prunes_and_quantises():
    model, hierarchy, _ = opened("qwen2_moe")
    done = apply_steps(model, hierarchy, preset_steps("prune_experts-75+rtn-w4", hierarchy), batches_of())
    assert model.config.num_experts == 3
    assert any(".experts." in path for path in done.tensors)


def test_what_cannot_be_is_refused_and_leaves_the_model():
    model, hierarchy, _ = opened("mixtral")
    batches, blocks = batches_of(), hierarchy.modalities[1].blocks
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PlanError, match=r"select language\.blocks\.1 too"):
        PruneExperts().reshape(model, hierarchy, blocks[:1], batches)
    with pytest.raises(PlanError, match=r"language\.blocks: with so few experts the router cannot choose"):
        PruneExperts(keep=0.25).reshape(model, hierarchy, blocks, batches)
    with pytest.raises(PlanError, match=r"keep 0\.9 of 4 experts leaves all"):
        PruneExperts(keep=0.9).reshape(model, hierarchy, blocks, batches)
    with pytest.raises(DataError, match="prune_experts needs calibration data"):
        PruneExperts().reshape(model, hierarchy, blocks, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    llama, plain_hierarchy, _ = opened("llama")
    with pytest.raises(PlanError, match="its blocks have no stacked experts"):
        PruneExperts().reshape(llama, plain_hierarchy, plain_hierarchy.modalities[1].blocks, batches)
    for settings in ({"keep": 0.0}, {"keep": 1.0}, {"criterion": "loudest"}):
        with pytest.raises(ValueError, match="cannot be"):
            PruneExperts(**settings)
