"""Blocks with states: what sets their dynamics is never quantised, their linear layers are served like any other."""

import pytest
import torch
import transformers as hf
from tests.compress.test_apply import step
from tests.models.tiny import build

from gossamer.compress.apply import apply_steps
from gossamer.compress.presets import preset_steps
from gossamer.compress.registry import techniques
from gossamer.data.batch import Batch
from gossamer.models.checkpoint import save_compressed, settle
from gossamer.models.open import Opened
from gossamer.models.reloading import parity
from gossamer.models.structure import hierarchy_of


def mamba2():
    torch.manual_seed(0)
    config = hf.Mamba2Config(
        vocab_size=96, hidden_size=16, state_size=4, num_hidden_layers=2, num_heads=4, head_dim=8, n_groups=1,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return hf.Mamba2ForCausalLM(config).eval().requires_grad_(False)


MODELS = {"mamba": lambda: build("mamba"), "mamba2": mamba2, "rwkv": lambda: build("rwkv")}
DYNAMICS = {
    "mamba": ("A_log", ".D", "conv1d", "dt_proj.bias"),
    "mamba2": ("A_log", ".D", "conv1d", "dt_bias"),
    "rwkv": ("time_decay", "time_first", "time_mix"),
}


def opened(name):
    model = MODELS[name]()
    tokens = torch.randint(3, 90, (4, 12), generator=torch.Generator().manual_seed(1))
    return model, hierarchy_of(model, model.config), [Batch({"input_ids": tokens}, torch.empty(0), tuple(range(4)))]


def dynamics(name, model):
    found = {
        key: tensor.clone() for key, tensor in model.named_parameters() if any(part in key for part in DYNAMICS[name])
    }
    assert len(found) >= 2 * len(DYNAMICS[name]) - 2
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_hierarchy_lists_no_vector_of_the_dynamics(name):
    model, hierarchy, _ = opened(name)
    assert not hierarchy.guessed
    pinned = dynamics(name, model).keys()
    assert not {layer.tensor for layer in hierarchy.layers()} & pinned
    assert hierarchy.parameters == model.num_parameters()


@pytest.mark.parametrize("do", [name for name, phase in techniques().items() if phase in ("quantise", "sparsify")])
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_for_whole_blocks_leaves_the_dynamics_and_serves_the_rest(name, do):
    model, hierarchy, batches = opened(name)
    pinned = dynamics(name, model)
    settings = {"bits": 3} if techniques()[do] == "quantise" else {"sparsity": 0.5}
    settings |= {"iterations": 2} if do in ("signround", "omniquant") else {}
    done = apply_steps(model, hierarchy, [step("language.blocks.*", do, **settings)], batches)
    served = {layer.path for block in hierarchy.blocks() for layer in block.layers}
    assert served == set(done.tensors or done.masks)
    for key, tensor in pinned.items():
        assert torch.equal(model.get_parameter(key), tensor), key
    assert torch.isfinite(model(**batches[0].inputs).logits).all()


@pytest.mark.parametrize("name", MODELS)
def test_exported_the_dynamics_stay_at_16_bits(name, tmp_path):
    model, hierarchy, batches = opened(name)
    whole = Opened(model, hierarchy, model.config, name, "sha256:" + "0" * 64)
    pinned = dynamics(name, model)
    done = apply_steps(model, hierarchy, preset_steps("gptq-w4g32", hierarchy), batches)
    save_compressed(whole, done.tensors, tmp_path / "out")
    settle(whole, done.tensors)
    for key, tensor in pinned.items():
        assert torch.equal(model.get_parameter(key), tensor.half().float())
    assert parity(whole, tmp_path / "out", batches[0].inputs) == 0
