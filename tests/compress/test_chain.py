"""Passes over one layer: what they leave adds up to what the layer computes with, and bad chains are refused early."""

import pytest
import torch
from tests.compress.test_apply import opened, step
from tests.compress.transform.test_rotate import REFUSED, shake
from tests.models.tiny import BUILDERS

from gossamer.compress.apply import apply_steps
from gossamer.compress.chain import assign
from gossamer.compress.registry import techniques
from gossamer.compress.transform.trial import change, results
from gossamer.core.errors import DataError, PlanError
from gossamer.core.technique import known_techniques
from gossamer.engine.forward import forward
from gossamer.models.structure import read_matrix

CHAINS = {
    "wanda, gptq": [("wanda", {"pattern": "2:4"}), ("gptq", {"bits": 4})],
    "sparsegpt, qronos, correction": [("sparsegpt", {}), ("qronos", {"bits": 3}), ("correction", {"rank": 2})],
    "obr": [("obr", {"sparsity": 0.3})],
    "low_rank, rest, gptq": [("low_rank", {"rank": 2, "rest": "full"}), ("gptq", {"bits": 3})],
    "losparse, rtn": [("losparse", {"rank": 2}), ("rtn", {"bits": 4})],
    "gptq, activations": [("gptq", {"bits": 8}), ("activations", {"dynamic": False})],
    "rtn, activations": [
        ("rtn", {"bits": 8, "format": "fp8"}),
        ("activations", {"format": "fp8"}),
    ],
    "low_rank, correction": [("low_rank", {"rank": 1}), ("correction", {"rank": 1})],
}


def steps(names, at="language.blocks.*.mlp.*"):
    return [step(at, do, **settings) for do, settings in names]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_the_parts_add_up_to_what_the_layer_computes_with(family, chain):
    model, hierarchy, batches = opened(family)
    before = {layer.path: read_matrix(model, layer).clone() for layer in hierarchy.layers()}
    chosen = steps(CHAINS[chain])
    done = apply_steps(model, hierarchy, chosen, batches)
    paths = assign(hierarchy, chosen).chains
    assert paths
    for layer in hierarchy.layers():
        now = read_matrix(model, layer)
        if layer.path not in paths:
            assert torch.equal(now, before[layer.path])
            continue
        tensor, low_rank = done.tensors.get(layer.path), done.low_ranks.get(layer.path)
        rest = now.clone() if low_rank is None else now - low_rank.dense()
        if tensor is not None:
            assert torch.allclose(rest, tensor.dequantize().reshape(rest.shape), atol=1e-5)
            rest = tensor.dequantize().reshape(rest.shape)
        if layer.path in done.masks:
            assert not rest[~done.masks[layer.path]].abs().gt(1e-6).any(), "a zero was lost"
            assert 0 < done.masks[layer.path].float().mean() < 1
        if chain == "low_rank, correction":
            assert low_rank.rank == 2
            assert rest.abs().max() < 1e-5
        assert 0 <= float((now - before[layer.path]).square().sum()) < float(before[layer.path].square().sum())


def test_a_correction_lowers_the_error_and_joins_the_factors_before_it():
    reference, hierarchy, batches = opened("llama")
    model, hierarchy, batches = opened("llama")
    plain = apply_steps(model, hierarchy, steps([("gptq", {"bits": 2})]), batches)
    corrected, hierarchy, batches = opened("llama")
    better = apply_steps(corrected, hierarchy, steps([("gptq", {"bits": 2}), ("correction", {"rank": 4})]), batches)
    first = "language.blocks.0.mlp.gate_proj"
    assert torch.equal(plain.tensors[first].codes, better.tensors[first].codes), "nothing before it is corrected"
    with torch.no_grad():
        wanted, found, mended = (one(**batches[0].inputs).logits for one in (reference, model, corrected))
    assert (mended - wanted).square().mean() < 0.9 * (found - wanted).square().mean()
    assert {part.rank for part in better.low_ranks.values()} == {4}


SETTINGS = {
    "sparsify": {"sparsity": 0.5},
    "quantise": {"bits": 4},
    "decompose": {"rank": 2},
    "correct": {"rank": 1},
}
LEARNT = {"signround": {"iterations": 2}, "omniquant": {"iterations": 2}, "awq": {"steps": 3}}


@pytest.mark.parametrize("name", [name for name, phase in techniques().items() if phase in SETTINGS])
@pytest.mark.parametrize("family", BUILDERS)
def test_every_technique_on_every_family(family, name):
    model, hierarchy, batches = opened(family)
    phase = techniques()[name]
    plain = [
        layer
        for layer in hierarchy.layers()
        if layer.kind in ("linear", "expert") and min(layer.rows, layer.columns) > 1
    ]
    inside = [layer for block in hierarchy.blocks() for layer in block.layers if layer in plain]
    settings = {**SETTINGS[phase], **LEARNT.get(name, {})}
    chosen = [step(layer.path, name, **settings) for layer in inside]
    before = [(layer.path, {"bits": 3}) for layer in inside] if phase == "correct" else []
    done = apply_steps(model, hierarchy, [*(step(at, **bits) for at, bits in before), *chosen], batches)
    kinds = {"sparsify": done.masks, "quantise": done.tensors, "decompose": done.low_ranks, "correct": done.low_ranks}
    served = {layer.path for layer in inside if not layer.transposed}
    assert set(kinds[phase]) == served
    for layer in inside:
        if layer.path in done.masks and layer.path not in done.low_ranks:
            assert not read_matrix(model, layer)[~done.masks[layer.path]].any()
    for tensor in model.state_dict().values():
        assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


SHORT = {"spinquant": {"steps": 1}, "learned_scales": {"iterations": 1}}


@pytest.mark.parametrize("name", [name for name, phase in techniques().items() if phase == "transform"])
@pytest.mark.parametrize("family", BUILDERS)
def test_every_transform_on_every_family(family, name):
    """Before 8-bit rounding, which hardly changes the outputs: so nor must the transform; or it refuses the family."""
    model, hierarchy, batches = opened(family)
    shake(model)
    inside = [layer for block in hierarchy.blocks() for layer in block.layers if layer.kind == "linear"]
    tower = max((part for part in hierarchy.modalities if part.blocks), key=lambda part: part.parameters)
    before = results(forward(model, batches[0].inputs))
    chosen = [step(f"{tower.name}.**", name, **SHORT.get(name, {})), *(step(x.path, "rtn", bits=8) for x in inside)]
    if (family, tower.name) in REFUSED and name in ("rotate", "spinquant"):
        with pytest.raises(PlanError, match="cannot be rotated"):
            apply_steps(model, hierarchy, chosen, batches)
        assert change(before, results(forward(model, batches[0].inputs))) == 0
        return
    done = apply_steps(model, hierarchy, chosen, batches)
    assert set(done.tensors) == {layer.path for layer in inside if not layer.transposed}
    assert change(before, results(forward(model, batches[0].inputs))) < 0.2


WHOLE = {
    "permute": {"pattern": "1:2"},
    "prune_channels": {"importance": "learned", "steps": 2, "keep": 0.5, "align": 4},
    "prune_heads": {"importance": "learned", "steps": 2, "keep": 0.5},
    "heal": {"loss": "on_policy", "steps": 1, "tokens": 1},
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("family", BUILDERS)
def test_techniques_on_whole_towers_serve_a_family_or_say_why_not(family, name):
    model, hierarchy, batches = opened(family)
    tower = max((part for part in hierarchy.modalities if part.blocks), key=lambda part: part.parameters)
    at = f"{tower.name}.blocks.*"
    first = [step(at, "rtn", bits=4)] if name == "heal" else []
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        done = apply_steps(model, hierarchy, [*first, step(at, name, **WHOLE[name])], batches * 2)
    except PlanError as refused:
        said = str(refused)
    else:
        said = ""
    if said:
        assert "\n" not in said
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert name != "permute"
        assert family not in ("llama", "qwen2", "qwen3")
        return
    assert (done.hierarchy.parameters < hierarchy.parameters) == name.startswith("prune")
    for tensor in model.state_dict().values():
        assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            [("gptq", {"bits": 4}), ("wanda", {})],
            r"step 2: wanda \(sparsify\) comes too late .* quantise; the order is",
        ),
        ([("low_rank", {"rank": 2}), ("wanda", {"pattern": "2:4"})], r"step 2 \(wanda .*nothing of .* is left"),
        ([("losparse", {"rank": 2}), ("wanda", {})], r"step 2 \(wanda .* already set values .* to zero"),
        ([("wanda", {}), ("signround", {"bits": 4})], r"step 2 \(signround .* would not keep the zeros"),
        (
            [("signround", {"bits": 4}), ("correction", {"rank": 2})],
            r"step 2 \(correction .* leaves no room for factors",
        ),
        ([("low_rank", {"rank": 2, "rest": "full"}), ("omniquant", {"bits": 4})], r"step 2 \(omniquant .* no room for"),
        (
            [("wanda", {"pattern": "3:7"})],
            r"step 1 \(wanda at .*\), layer language.blocks.0.mlp.*: pattern 3:7 does not",
        ),
        ([("gptq", {"bits": 4, "group": 48})], r"step 1 \(gptq at .*\), layer .*: group 48 does not divide"),
        ([("correction", {"rank": 4096})], r"step 1 \(correction at .*\), layer .*: rank 4096 is too large"),
        ([("low_rank", {})], "either a rank or a ratio"),
        ([("activations", {})], r"step 1 \(activations .*, as formats store that beside the quantised weight"),
        ([("activations", {}), ("gptq", {"bits": 8})], r"step 1 \(activations .* quantise it in an earlier step"),
        (
            [("rtn", {"bits": 8}), ("activations", {}), ("correction", {"rank": 2})],
            r"step 3 \(correction .* cannot have factors and rounded inputs",
        ),
        ([("rtn", {"bits": 8}), ("activations", {"bits": 3})], "bits cannot be 3: int takes 4, 5, 6, 7, 8"),
        ([("signround", {"bits": 8, "format": "fp8"})], "format cannot be 'fp8': roundings are learnt on"),
        ([("hqq", {"bits": 8, "format": "fp8"})], "'hqq' has no setting 'format'"),
        (
            [("gptq", {"bits": 4, "group": 16, "format": "nvfp4"})],
            "nvfp4 takes columns in groups of 16, this layer has",
        ),
        (
            [("rtn", {"bits": 8}), ("activations", {"format": "mxfp4", "bits": 4})],
            r"step 2 \(activations .* mxfp4 takes columns in groups of 32, this layer has",
        ),
        ([("gptq", {"bits": 4, "format": "mxfp4"})], "mxfp4 has 4 bits, group 32 and no zero point"),
        ([("wanda", {"sparsity": 0.3, "pattern": "2:4"})], "contradicts pattern 2:4"),
        ([("rtn", {"bits": 4, "act_order": True})], "'rtn' has no setting 'act_order'"),
        ([("wanda", {}), ("low_rank", {"rank": 2})], r"step 2: low_rank \(decompose\) comes too late"),
        ([("wanda", {}), ("rotate", {})], r"step 2: rotate \(transform\) comes too late"),
        ([("rtn", {"bits": 4}), ("drop_block", {})], r"step 2: drop_block \(structure\) comes too late"),
        ([("drop_block", {})], r"step 1 \(drop_block at .*\): .* selects no whole block"),
    ],
)
def test_bad_chains_are_refused_before_work_starts(names, said):
    model, hierarchy, batches = opened("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PlanError, match=said):
        apply_steps(model, hierarchy, steps(names), batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("at", "do", "said"),
    [
        ("embeddings.*", "rotate", r"step 2 \(rotate at 'embeddings.\*'\): it works on the linear layers of blocks"),
        ("embeddings.*", "smoothquant", r"step 2 \(smoothquant .* none is selected"),
        ("embeddings.*", "awq_scales", r"step 2 \(awq_scales .* none is selected"),
        ("language.blocks.*", "drop_block", r"step 2 \(drop_block .*\): .* all 2 blocks would go; keep at least one"),
        ("language.blocks.0.mlp.up_proj", "prune_heads", r"step 2 \(prune_heads .* selects no whole block"),
    ],
)
def test_a_technique_on_blocks_that_it_cannot_serve_is_refused_with_its_entry(at, do, said):
    model, hierarchy, batches = opened("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"keep": 0.5} if do == "prune_heads" else {}
    with pytest.raises(PlanError, match=said) as refused:
        apply_steps(model, hierarchy, [step("head.lm_head", bits=4), step(at, do, **settings)], batches)
    assert "\n" not in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rounding", [{"do": "awq", "symmetric": False}, {"do": "hqq", "symmetric": False}])
def test_a_mask_outlives_what_scales_columns_and_shifts_zeros(rounding):
    model, hierarchy, batches = opened("llama")
    at = "language.blocks.*.mlp.*"
    chosen = [step(at, "wanda", pattern="2:4"), step(at, bits=3, **rounding)]
    done = apply_steps(model, hierarchy, chosen, batches)
    layers = {layer.path: layer for layer in hierarchy.layers()}
    assert done.masks
    for path, mask in done.masks.items():
        assert not read_matrix(model, layers[path])[~mask].any()


def test_awq_scales_keep_the_function_and_let_another_technique_round():
    model, hierarchy, batches = opened("llama")
    with torch.no_grad():
        before = model(**batches[0].inputs).logits.clone()
    norms = {name: value.clone() for name, value in model.state_dict().items() if "norm" in name}
    apply_steps(model, hierarchy, [step("language.**", "awq_scales", bits=3, group=8, steps=5)], batches)
    with torch.no_grad():
        assert torch.allclose(model(**batches[0].inputs).logits, before, atol=1e-4)
    assert any(not torch.equal(model.state_dict()[name], value) for name, value in norms.items())


def test_healing_runs_last_and_needs_data_to_hold_it_to():
    model, hierarchy, batches = opened("llama")
    chosen = [*steps([("gptq", {"bits": 2})]), step("language.**", "heal", steps=4)]
    with pytest.raises(DataError, match=r"step 2: heal needs .* at least 2 batches"):
        apply_steps(model, hierarchy, chosen, batches)
    assert set(known_techniques()) >= {"heal", "rotate", "smoothquant"}
    model, hierarchy, batches = opened("llama")
    done = apply_steps(model, hierarchy, chosen, batches * 2)
    assert any("step 2: heal" in note for note in done.notes)
    for path, tensor in done.tensors.items():
        layer = next(layer for layer in hierarchy.layers() if layer.path == path)
        assert torch.allclose(read_matrix(model, layer), tensor.dequantize(), atol=1e-6)


def test_structure_goes_first_and_later_steps_speak_of_the_original_blocks():
    model, hierarchy, batches = opened("llama")
    blocks = [block.path for block in hierarchy.blocks()]
    chosen = [
        step(blocks[0], "drop_block"),
        step("language.blocks.*", "prune_channels", keep=0.5, align=8),
        step("language.blocks.*", bits=4),
    ]
    done = apply_steps(model, hierarchy, chosen, batches)
    assert [block.path for block in done.hierarchy.blocks()] == blocks[1:]
    assert all(path.startswith(tuple(blocks[1:])) for path in done.tensors)
    assert model.config.num_hidden_layers == len(blocks) - 1
    assert model(**batches[0].inputs).logits.isfinite().all()
    model, hierarchy, batches = opened("llama")
    wide = [step("language.blocks.*", "prune_channels", keep=0.5, align=4), step("language.blocks.*", bits=4, group=8)]
    with pytest.raises(PlanError, match=r"after its structure has changed, layer .*down_proj: group 8") as refused:
        apply_steps(model, hierarchy, wide, batches)
    assert "\n" not in str(refused.value)


def test_a_rotation_before_rounding_parts_the_tied_head():
    model, hierarchy, batches = opened("qwen2")
    tied = [layer.path for layer in hierarchy.layers() if layer.tied_to]
    assert tied
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 2.0)
    done = apply_steps(model, hierarchy, [step("language.**", "rotate"), step("language.blocks.*", bits=4)], batches)
    assert all(layer.tied_to is None for layer in done.hierarchy.layers())
    assert any("no longer share" in note for note in done.notes)
