"""Applying steps: what is selected is quantised, calibrated on what reaches it, and nothing else changes."""

import gc

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import BUILDERS, build

from gossamer.compress.apply import apply_steps
from gossamer.compress.calibrate import Stream, collect, layers_by_step, pass_through
from gossamer.compress.chain import assign
from gossamer.compress.swap import Swap, replace_weight, restored
from gossamer.core.errors import DataError, ModelError, PlanError
from gossamer.core.plan import Step
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.structure import hierarchy_of, read_matrix


def opened(name, seed=0):
    torch.manual_seed(seed)
    model = build(name, seed)
    inputs = inputs_for(name, model)
    rows = next(iter(inputs.values())).shape[0]
    return model, hierarchy_of(model, model.config), [Batch(inputs, torch.empty(0), tuple(range(rows)))]


def step(at, do="gptq", **settings):
    return Step.model_validate({"at": at, "do": do, **settings})


@pytest.mark.parametrize("name", ["llama", "llava", "owlv2", "vit", "bert", "whisper", "qwen3_vl", "mamba", "rwkv"])
def test_every_linear_layer_of_a_family(name):
    model, hierarchy, batches = opened(name)
    linear = [layer for layer in hierarchy.layers() if layer.kind == "linear" and layer.tied_to is None]
    untouched = {n: p.clone() for n, p in model.named_parameters() if n not in {layer.tensor for layer in linear}}
    done = apply_steps(model, hierarchy, [step(layer.path, bits=4) for layer in linear], batches)
    assert set(done.tensors) == {layer.path for layer in linear}
    for layer in linear:
        assert torch.equal(read_matrix(model, layer), done.tensors[layer.path].dequantize().reshape(layer.rows, -1))
    for parameter_name, value in untouched.items():
        assert torch.equal(model.get_parameter(parameter_name), value)


def test_same_steps_give_the_same_codes():
    runs = []
    for _ in range(2):
        model, hierarchy, batches = opened("llava")
        runs.append(apply_steps(model, hierarchy, [step("{vision,language}.blocks.*", bits=3)], batches).tensors)
    assert all(torch.equal(runs[0][path].codes, runs[1][path].codes) for path in runs[0])


def test_later_layers_are_calibrated_behind_quantised_ones():
    model, hierarchy, batches = opened("llama")
    both = apply_steps(model, hierarchy, [step("language.blocks.*", bits=2)], batches).tensors
    model, hierarchy, batches = opened("llama")
    alone = apply_steps(model, hierarchy, [step("language.blocks.1", bits=2)], batches).tensors
    assert any(not torch.equal(both[path].codes, alone[path].codes) for path in alone)


def test_statistics_are_the_inputs_second_moments_and_padding_does_not_count():
    model, hierarchy, _ = opened("llama")
    ids = torch.randint(3, 90, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    batch = Batch({"input_ids": ids, "attention_mask": mask}, torch.empty(0), (0, 1))
    walk = Walk(model, hierarchy, batch.inputs)
    stream = Stream(walk, [batch])
    stream.advance()
    seen = []
    module = model.model.layers[0].self_attn.q_proj
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = collect(model, stream, layers_by_step(walk, hierarchy)[0])
    handle.remove()
    rows = torch.cat([seen[0][0], seen[0][1, :4]]).double()
    statistics = found["language.blocks.0.self_attn.q_proj"]
    assert statistics.tokens == 11
    assert torch.allclose(statistics.hessian.double(), rows.T @ rows / 11, atol=1e-6)
    assert statistics is found["language.blocks.0.self_attn.k_proj"], "q and k read the same tensor"
    assert statistics is not found["language.blocks.0.self_attn.o_proj"]


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_batches_in_lockstep_see_what_each_alone_would(name):
    """With nothing changed on the way, statistics and doors are those of passes one after another."""
    model, hierarchy, (batch,) = opened(name)
    batches = [batch, batch]
    walk = Walk(model, hierarchy, batch.inputs)
    together, apart = Stream(walk, batches), Stream(walk, batches)
    for layers in [layers_by_step(walk, hierarchy)[step] for step in sorted(layers_by_step(walk, hierarchy))]:
        met = {}
        wanted = [layer for layer in layers if layer.kind == "linear"]
        expected = collect(model, apart, wanted)
        pass_through(model, together, wanted, lambda layer, statistics, met=met: met.update({layer.path: statistics}))
        assert {path for path, statistics in met.items() if statistics is not None} == set(expected)
        for path, statistics in expected.items():
            assert torch.equal(met[path].hessian, statistics.hessian)
        if not apart.last:
            apart.advance()
            assert all(torch.equal(together.entry(n).hidden, apart.entry(n).hidden) for n in range(2))


def test_a_layer_is_calibrated_behind_the_quantised_ones_of_its_own_block():
    model, hierarchy, batches = opened("llama")
    steps = [step("language.blocks.0.{self_attn,mlp}.*", bits=2)]
    together = apply_steps(model, hierarchy, steps, batches).tensors
    down = "language.blocks.0.mlp.down_proj"
    model, hierarchy, batches = opened("llama")
    by_path = {layer.path: layer for layer in hierarchy.layers()}
    for path, tensor in together.items():
        if path != down:
            replace_weight(model, by_path[path], tensor.dequantize())
    alone = apply_steps(model, hierarchy, [step(down, bits=2)], batches).tensors
    assert torch.equal(alone[down].codes, together[down].codes)


def test_the_last_step_holds_and_fused_sets_must_agree():
    _, hierarchy, _ = opened("llama")
    found = assign(hierarchy, [step("language.**", bits=4), step("language.blocks.1.mlp", do="rtn", bits=8)]).chains
    assert found["language.blocks.0.mlp.down_proj"].quantise.bits == 4
    assert found["language.blocks.1.mlp.down_proj"].quantise.bits == 8
    with pytest.raises(PlanError, match="share a setting"):
        assign(hierarchy, [step("language.blocks.0.self_attn.q_proj", bits=4)])
    with pytest.raises(PlanError, match="selects no layer"):
        assign(hierarchy, [step("speech.blocks.*", bits=4)])


def test_an_error_among_the_passes_leaves_gradients_as_they_were():
    model, hierarchy, batches = opened("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with torch.enable_grad():
        with pytest.raises(ModelError, match="NaN"):
            apply_steps(model, hierarchy, [step("language.blocks.0.mlp", bits=4)], batches * 2)
        gc.collect()
        assert torch.is_grad_enabled()


def test_missing_or_broken_data_is_refused():
    model, hierarchy, batches = opened("llama")
    with pytest.raises(DataError, match="calibration data"):
        apply_steps(model, hierarchy, [step("language.blocks.*", bits=4)], [])
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises((ModelError, DataError), match=r"up_proj|down_proj|NaN"):
        apply_steps(model, hierarchy, [step("language.blocks.0.mlp", bits=4)], batches)


def test_swap_unties_and_ties_again():
    model, hierarchy, _ = opened("qwen2_vl")
    tied = next(layer for layer in hierarchy.layers() if layer.tied_to is not None)
    owner = next(layer for layer in hierarchy.layers() if layer.path == tied.tied_to)
    before = read_matrix(model, owner).clone()
    from gossamer.compress.quantize import RoundToNearest

    swap = Swap(model)
    swap.put(tied, RoundToNearest(bits=2).quantize(read_matrix(model, tied).float(), None).tensor)
    assert torch.equal(read_matrix(model, owner), before)
    assert not torch.equal(read_matrix(model, tied), before)
    swap.restore()
    assert model.get_parameter(tied.tensor) is model.get_parameter(owner.tensor)


def test_restored_puts_the_same_parameters_back():
    model, hierarchy, batches = opened("llama")
    before = {layer.path: model.get_parameter(layer.tensor) for layer in hierarchy.layers()}
    with restored(model, hierarchy.layers()):
        apply_steps(model, hierarchy, [step("language.blocks.*", bits=2)], batches)
    assert all(model.get_parameter(layer.tensor) is before[layer.path] for layer in hierarchy.layers())
