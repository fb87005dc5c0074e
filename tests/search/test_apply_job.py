"""Presets of every phase, replayed on a model and exported: what is written is what was made, notes say the rest."""

import json
import shutil

import pytest
import torch
import transformers

from gossamer.core.errors import ModelError
from gossamer.core.plan import load_plan
from gossamer.models.adapter import load_with_adapter
from gossamer.models.inputs import input_grid, round_inputs
from gossamer.models.open import open_model
from gossamer.models.reloading import reload
from gossamer.search.export import export_gguf_job
from gossamer.search.finish import PARITY_LIMIT
from gossamer.search.jobs import apply_job


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("sparsegpt-50", "pruned layers (50% zeros) are stored with their zeros"),
        ("wanda-2:4+gptq-w4g32", "pruned layers (50% zeros)"),
        ("gptq-w3g32+correction-r4", "have a correction of low rank in adapter/"),
        ("low_rank-r4", "are factors are stored multiplied out"),
        ("rotate+gptq-w4g32", None),
        ("smoothquant+rtn-w8", None),
        ("prune_heads-50", None),
        ("gptq-w2g32+heal", "heal"),
        ("gptq-w8a8", None),
        ("gptq-w4g32a8s", None),
        ("rtn-fp8+activations-fp8", None),
        ("gptq-fp8+activations-fp8s", None),
        ("gptq-mxfp4+activations-mxfp4", "4-bit floats"),
        ("gptq-nvfp4+activations-nvfp4", "4-bit floats"),
        ("smoothquant+qronos-w8a8", None),
    ],
)
def test_a_preset_is_exported_as_it_was_made(model, tmp_path, preset, said):
    out = tmp_path / "out"
    result = apply_job(preset, str(model), out)
    assert result["parity"] <= PARITY_LIMIT
    assert said is None or any(said in note for note in result["notes"]), result["notes"]
    config = json.loads((out / "config.json").read_text())
    assert config["num_key_value_heads"] == (1 if "heads" in preset else 2)
    assert (out / "adapter").exists() == ("correction" in preset)
    if "correction" in preset:
        load_with_adapter(out)
        stored = (out / "model.safetensors").stat().st_size
        assert stored < result["measured"]["weight_bytes"]["value"] + 20_000
    else:
        transformers.AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("preset", ["prune_channels-free-50", "prune_channels-free-50+gptq-w4g32+correction-r4"])
def test_free_widths_are_exported_with_their_code(model, tmp_path, preset):
    wide = transformers.LlamaConfig.from_pretrained(model)
    wide.intermediate_size, wide.num_hidden_layers = 256, 3
    shutil.copytree(model, tmp_path / "wide")
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(wide)
    made.model.layers[1].mlp.down_proj.weight.data[:, 64:] = 0
    made.save_pretrained(tmp_path / "wide")
    out = tmp_path / "out"
    result = apply_job(preset, str(tmp_path / "wide"), out)
    assert result["parity"] <= PARITY_LIMIT
    assert sum("trust_remote_code=True" in note for note in result["notes"]) == 1
    widths = json.loads((out / "config.json").read_text())["gossamer_widths"]
    assert widths["model.layers.1.mlp.up_proj"] == [64, 32]
    assert sum(widths[f"model.layers.{n}.mlp.down_proj"][1] for n in range(3)) == 3 * 128
    plain = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    ids = torch.arange(1, 25).reshape(2, 12)
    if "correction" not in preset:
        with torch.no_grad():
            assert (plain.float()(ids).logits - open_model(str(out)).model(ids).logits).abs().max() < 1e-4
    else:
        load_with_adapter(out)
    words = plain.generate(ids[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert words.shape == (1, 16)


@pytest.mark.parametrize("preset", ["gptq-w8a8", "gptq-fp8+activations-fp8s", "gptq-nvfp4+activations-nvfp4"])
def test_rounded_inputs_are_there_again_when_the_checkpoint_is_opened(model, tmp_path, preset):
    apply_job(preset, str(model), tmp_path / "out")
    opened = open_model(str(tmp_path / "out"))
    ids = torch.arange(1, 25).reshape(2, 12)
    floats4 = "nvfp4" in preset  # which transformers unpacks to bfloat16
    dtype = torch.bfloat16 if floats4 else torch.float32
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    grids = {name: grid for name, module in opened.model.named_modules() if (grid := input_grid(module))}
    assert len(grids) == sum("proj" in name for name, _ in plain.named_modules())
    with torch.no_grad():
        ours, again, theirs = (model(ids).logits.float() for model in (opened.model, reload(tmp_path / "out"), plain))
    assert torch.equal(ours, again)
    if floats4:  # in bfloat16 some inputs fall on the next number: near, not equal
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.9
    else:
        assert (ours - theirs).abs().max() < 1e-4
    for name in grids:
        round_inputs(opened.model.get_submodule(name), None)
    with torch.no_grad():
        assert (opened.model(ids).logits - ours).abs().max() > 1e-5, "the rounding was really there"
    with pytest.raises(ModelError, match="GGUF has no place"):
        export_gguf_job(str(tmp_path / "out"), tmp_path / "model.gguf")


def test_parity_is_not_claimed_where_nothing_could_be_compared(model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "gossamer.json").unlink()
    assert apply_job("rtn-w4g32", str(model), tmp_path / "one")["parity"] == 0
    assert apply_job("rtn-w4g32", str(bare), tmp_path / "two")["parity"] is None


def test_a_preset_is_calibrated_on_the_data_given(model, tmp_path):
    """On a model without data of its own; the plan that is written names them and gives the same bytes."""
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("gossamer.json"))
    text = tmp_path / "words.txt"
    text.write_text("the cat sat on the mat and looked at the dog. " * 300)
    result = apply_job("rotate+gptq-w3g32", str(bare), tmp_path / "out", task="text", data=str(text))
    assert result["parity"] <= PARITY_LIMIT
    plan = load_plan(tmp_path / "out" / "plan.yaml")
    assert (plan.calibration.task, plan.calibration.data) == ("text", str(text))
    apply_job(str(tmp_path / "out" / "plan.yaml"), str(bare), tmp_path / "again")
    again, first = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "out"))
    assert again == first
    assert apply_job("rtn-w4g32", str(bare), tmp_path / "rounded", task="text", data=str(text))["parity"] is not None
    assert apply_job("rtn-w4g32", str(bare), tmp_path / "unproved")["parity"] is None
