"""Rotations keep the function of every build they accept, refuse the others by name, and tame outliers."""

import pytest
import torch
import transformers as hf
from tests.models.feeds import inputs_for
from tests.models.tiny import BUILDERS, build

import gossamer.compress.quantize  # noqa: F401 - registers rtn
from gossamer.compress.apply import apply_steps
from gossamer.compress.transform.rotate import Rotate
from gossamer.compress.transform.trial import change, results
from gossamer.core.errors import DataError, PlanError
from gossamer.core.plan import Step
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward as run
from gossamer.models.checkpoint import parity, save_compressed, settle
from gossamer.models.open import Opened
from gossamer.models.structure import hierarchy_of

REFUSED = {
    ("bert", "language"): "embeddings.LayerNorm scales its channels",
    ("bert_lm", "language"): "embeddings.LayerNorm scales its channels",
    ("roberta", "language"): "embeddings.LayerNorm scales its channels",
    ("roberta_lm", "language"): "embeddings.LayerNorm scales its channels",
    ("clip", "vision"): "pre_layrnorm scales its channels",
    ("llava", "vision"): "pre_layrnorm scales its channels",
    ("llava_next", "vision"): "pre_layrnorm scales its channels",
    ("gemma2", "language"): "post_attention_layernorm scales its channels",
    ("gemma3", "language"): "post_attention_layernorm scales its channels",
    ("owlv2", "vision"): "channels are bound by mul in the model",
    ("siglip", "vision"): "multi_head_attention_forward in vision_model.head.attention",
    ("rwkv", "language"): "channels are bound by add in rwkv.blocks.0",
    ("whisper", "audio"): "could not be followed",
}


def shaken(name, seed=0):
    """A tiny model whose norms and biases are not the 1 and 0 that they start with, and which would hide mistakes."""
    return shake(build(name, seed), seed), name


def shake(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def batch_of(inputs):
    return Batch(inputs, torch.empty(0), (0, 1))


def rotated(model, inputs, at, **settings):
    """The change of the output, and the notes."""
    hierarchy = hierarchy_of(model, model.config)
    before = results(run(model, inputs))
    notes = Rotate(**settings).transform(model, hierarchy, hierarchy.select(at), [batch_of(inputs)], {})
    return change(before, results(run(model, inputs))), notes


def towers(name):
    model = build(name)
    return [modality.name for modality in hierarchy_of(model, model.config).modalities if modality.blocks]


CASES = [(name, tower) for name in sorted(BUILDERS) for tower in towers(name)]


@pytest.mark.parametrize(("name", "tower"), [case for case in CASES if case not in REFUSED])
def test_the_function_stays(name, tower):
    model, _ = shaken(name)
    inputs = inputs_for(name, model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed, _ = rotated(model, inputs, f"{tower}.**")
    assert changed < 1e-4
    layers = [layer for block in hierarchy_of(model, model.config).blocks() for layer in block.layers]
    here = [layer for layer in layers if layer.path.startswith(f"{tower}.") and layer.kind == "linear"]
    turned = [layer for layer in here if not torch.allclose(before[layer.tensor], model.state_dict()[layer.tensor])]
    assert len(turned) >= len(here) / 2, "most matrices of the tower read or write its stream"


@pytest.mark.parametrize(("name", "tower"), sorted(REFUSED))
def test_what_cannot_turn_is_refused_by_name_and_untouched(name, tower):
    model, _ = shaken(name)
    inputs = inputs_for(name, model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    owners = len(list(model.parameters()))
    with pytest.raises(PlanError, match=f"{tower} cannot be rotated") as raised:
        rotated(model, inputs, f"{tower}.**")
    assert REFUSED[name, tower] in str(raised.value)
    free = [other for other in towers(name) if (name, other) not in REFUSED]
    assert f"towers of this model that can: {', '.join(free) or 'none'})" in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(list(model.parameters())) == owners, "ties are back"


@pytest.mark.parametrize("name", ["llama", "qwen2", "llava", "idefics3"])
@pytest.mark.parametrize(("kind", "seed"), [("random", 0), ("random", 1), ("hadamard", 2)])
def test_seeds_and_kinds(name, kind, seed):
    model, _ = shaken(name, seed)
    changed, _ = rotated(model, inputs_for(name, model), "**" if name == "idefics3" else "language.**", kind=kind)
    assert changed < 1e-4


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    states = []
    for seed in (0, 0, 1):
        model, _ = shaken("llava")
        rotated(model, inputs_for("llava", model), "language.**", seed=seed)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_the_stream_really_turns_by_one_matrix():
    """Hidden states before and after differ by an orthogonal matrix, found by least squares, images included."""
    model, _ = shaken("llava")
    inputs = inputs_for("llava", model)
    hidden = [run(model, {**inputs, "output_hidden_states": True}).hidden_states[1].reshape(-1, 16).double()]
    rotated(model, inputs, "language.**")
    hidden.append(run(model, {**inputs, "output_hidden_states": True}).hidden_states[1].reshape(-1, 16).double())
    matrix = torch.linalg.lstsq(hidden[0], hidden[1]).solution
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, 0.25), rtol=0, atol=1e-3)


def test_heads_turn_only_where_all_that_touches_them_is_selected():
    def weights(at, **settings):
        model, _ = shaken("llama")
        rotated(model, inputs_for("llama", model), at, **settings)
        return model.model.layers[0].self_attn

    plain, turned = weights("language.**", heads=False), weights("language.**")
    assert not torch.allclose(plain.v_proj.weight, turned.v_proj.weight)
    gram = [part.v_proj.weight.unflatten(0, (2, 4)) for part in (plain, turned)]
    torch.testing.assert_close(*(each.transpose(1, 2) @ each for each in gram))
    part = weights("language.blocks.0.self_attn.v_proj")
    assert torch.equal(part.v_proj.weight, plain.v_proj.weight)


def outlying(seed):
    """A llama in which one channel of the stream is read with large weights."""
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = shake(hf.LlamaForCausalLM(config).eval().requires_grad_(False), seed)
    for layer in model.model.layers:
        for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            module.weight[:, 5] *= 30
        for module in (layer.mlp.gate_proj, layer.mlp.up_proj):
            module.weight[:, 5] *= 30
    return model


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["hadamard", "random"])
def test_rounding_loses_less_once_an_outlier_channel_is_spread(seed, kind):
    inputs = {"input_ids": torch.randint(3, 80, (4, 16), generator=torch.Generator().manual_seed(seed))}
    losses = []
    for before in ([], [{"at": "language.**", "do": "rotate", "kind": kind}]):
        model = outlying(seed)
        reference = run(model, inputs).logits
        steps = [Step.model_validate(step) for step in [*before, {"at": "language.**", "do": "rtn", "bits": 4}]]
        apply_steps(model, hierarchy_of(model, model.config), steps, [batch_of(inputs)])
        losses.append(float((run(model, inputs).logits - reference).square().mean() / reference.square().mean()))
    assert losses[1] < 0.8 * losses[0]


def test_odd_sizes_turn_in_blocks_and_say_so():
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=96, hidden_size=36 * 3 - 8 * 5 - 2, intermediate_size=24, num_hidden_layers=1, num_attention_heads=3,
        num_key_value_heads=1, head_dim=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = shake(hf.LlamaForCausalLM(config).eval().requires_grad_(False))
    changed, notes = rotated(model, {"input_ids": torch.tensor([[4, 5, 6, 7]])}, "language.**")
    assert changed < 1e-4
    assert notes == ("66 channels turn in blocks of 2: no Hadamard matrix is known",)


def test_a_tied_head_parts_and_the_checkpoint_holds_both(tmp_path):
    model, _ = shaken("qwen2")
    hierarchy, inputs = hierarchy_of(model, model.config), inputs_for("qwen2", model)
    opened = Opened(model, hierarchy, model.config, "qwen2", "sha256:" + "0" * 64)
    before = save_compressed(opened, {}, tmp_path / "before").weight_bytes
    assert model.lm_head.weight is model.model.embed_tokens.weight
    _, notes = rotated(model, inputs, "language.**")
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert notes == ("model.embed_tokens.weight and lm_head.weight no longer share one tensor: both are stored",)
    after = save_compressed(opened, {}, tmp_path / "after").weight_bytes
    assert after - before == 2 * model.lm_head.weight.numel()
    settle(opened, {})
    assert parity(opened, tmp_path / "after", inputs) == 0


def test_bad_requests():
    model, _ = shaken("llava")
    hierarchy, inputs = hierarchy_of(model, model.config), inputs_for("llava", model)
    with pytest.raises(DataError, match="calibration batch"):
        Rotate().transform(model, hierarchy, hierarchy.select("language.**"), [], {})
    with pytest.raises(PlanError, match="select blocks of vision, language"):
        Rotate().transform(model, hierarchy, hierarchy.select("projector.**"), [batch_of(inputs)], {})
    text = {"input_ids": torch.tensor([[4, 5, 6]])}
    with pytest.raises(PlanError, match=r"does not run .*, which may belong to its stream"):
        Rotate().transform(model, hierarchy, hierarchy.select("language.**"), [batch_of(text)], {})


def test_a_rotation_that_would_change_the_output_is_undone(monkeypatch):
    model, _ = shaken("llama")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    monkeypatch.setattr(
        "gossamer.compress.transform.rotate.orthogonal", lambda size, *_: torch.ones(size, size, dtype=torch.float64)
    )
    with pytest.raises(PlanError, match="rotating language would change the model's output by"):
        rotated(model, inputs_for("llama", model), "language.**")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
