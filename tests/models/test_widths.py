"""Checkpoints whose blocks differ in width: who loads them how, and who does not."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from tests.models.feeds import inputs_for
from tests.models.tiny import build

from gossamer.core.errors import ModelError
from gossamer.models import modeling_gossamer
from gossamer.models.checkpoint import reload, save_compressed, settle
from gossamer.models.gguf_write import write_gguf
from gossamer.models.open import Opened, open_model
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.reloading import parity
from gossamer.models.structure import hierarchy_of, read_matrix
from gossamer.models.surgery import channels_of, narrow, tower_of
from gossamer.models.widths import CODE

USERS = {
    ("llama", "language"): "AutoModelForCausalLM",
    ("qwen2", "language"): "AutoModelForCausalLM",
    ("vit", "vision"): "AutoModelForImageClassification",
    ("llava", "vision"): "AutoModelForImageTextToText",
    ("llava", "language"): "AutoModelForImageTextToText",
}


def parted(name, tower="language"):
    """A model whose blocks have 8 and 16 channels."""
    model = build(name)
    hierarchy = hierarchy_of(model, model.config)
    units = channels_of(model, tower_of(hierarchy, f"{tower}.blocks.0"))
    keep = {path: torch.arange(8 * (n + 1)) for n, path in enumerate(units.parts)}
    found = narrow(model, hierarchy, units, keep)
    return Opened(found.model, found.hierarchy, found.model.config, name, ""), inputs_for(name, found.model)


def four_bits(opened, tower):
    """Every linear layer of the tower's blocks at 4 bits."""
    return {
        layer.path: QuantizedTensor.encode(weight, Scheme(4), (weight.abs().amax(1, keepdim=True) / 7).half())
        for layer in opened.hierarchy.select(f"{tower}.blocks.*")
        if layer.kind == "linear"
        for weight in [read_matrix(opened.model, layer).float()]
    }


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize(("name", "tower"), USERS)
def test_users_load_it_by_trusting_its_code(name, tower, bits, tmp_path):
    opened, inputs = parted(name, tower)
    tensors = four_bits(opened, tower) if bits == 4 else {}
    stored = save_compressed(opened, tensors, tmp_path / "checkpoint")
    settle(opened, tensors)
    wanted = logits(opened.model, inputs)
    auto = getattr(hf, USERS[name, tower])
    model = auto.from_pretrained(tmp_path / "checkpoint", trust_remote_code=True, dtype=torch.float32).eval()
    assert type(model).__name__ == f"Gossamer{type(build(name)).__name__}"
    torch.testing.assert_close(logits(model, inputs), wanted, rtol=0, atol=1e-6)
    assert parity(opened, stored.directory, inputs) <= 1e-6
    torch.testing.assert_close(logits(reload(stored.directory), inputs), wanted, rtol=0, atol=1e-6)
    own = open_model(str(stored.directory))
    torch.testing.assert_close(logits(own.model, inputs), wanted, rtol=0, atol=1e-6)
    assert {layer.path for layer in own.hierarchy.layers()} == {layer.path for layer in opened.hierarchy.layers()}
    if bits == 16:
        model.save_pretrained(tmp_path / "again")
        again = auto.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
        torch.testing.assert_close(logits(again, inputs), wanted, rtol=0, atol=1e-6)
        save_compressed(own, {}, tmp_path / "ours")
        assert parity(own, tmp_path / "ours", inputs) <= 1e-6
        shapes = open_model(str(stored.directory), weights=False)
        assert shapes.hierarchy == own.hierarchy


def test_without_trust_nothing_wrong_is_loaded(tmp_path):
    opened, _ = parted("llama")
    save_compressed(opened, {}, tmp_path / "checkpoint")
    with pytest.raises(RuntimeError, match="mismatch"):
        hf.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", trust_remote_code=False)


def test_gossamer_runs_no_code_of_a_checkpoint(tmp_path):
    opened, inputs = parted("llama")
    save_compressed(opened, {}, tmp_path / "checkpoint")
    settle(opened, {})
    file, config = tmp_path / "checkpoint" / CODE, tmp_path / "checkpoint" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "auto_map"}))
    with pytest.raises(ModelError, match="names no auto class"):
        reload(tmp_path / "checkpoint")
    assert file.read_bytes() == Path(modeling_gossamer.__file__).read_bytes()
    file.write_text("raise SystemExit('ran')\n")
    own = open_model(str(tmp_path / "checkpoint"))
    assert torch.equal(logits(own.model, inputs), logits(opened.model, inputs))
    with pytest.raises(ModelError, match=f"{CODE} is missing or is not the file of this version"):
        parity(opened, tmp_path / "checkpoint", inputs)
    file.unlink()
    with pytest.raises(ModelError, match="is missing or"):
        reload(tmp_path / "checkpoint")


@pytest.mark.parametrize("widths", [{"model.layers.7.mlp.up_proj": [8, 16]}, {"model.norm": [8, 16]}, {"lm_head": 3}])
def test_a_bad_entry_is_refused_in_one_line(widths, tmp_path):
    opened, _ = parted("llama")
    save_compressed(opened, {}, tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "gossamer_widths": widths}))
    for weights in (True, False):
        with pytest.raises(ModelError, match="checkpoint") as refused:
            open_model(str(tmp_path / "checkpoint"), weights=weights)
        assert "\n" not in str(refused.value)


def test_the_file_gives_classes_of_transformers_alone():
    assert issubclass(modeling_gossamer.GossamerLlamaForCausalLM, hf.LlamaForCausalLM)
    assert modeling_gossamer.GossamerLlamaForCausalLM is modeling_gossamer.GossamerLlamaForCausalLM
    for name in ("GossamerNothing", "GossamerLlamaConfig", "LlamaForCausalLM", "Gossamer__name__"):
        with pytest.raises(AttributeError, match=name):
            getattr(modeling_gossamer, name)


def test_gguf_has_no_place_for_it(tmp_path):
    opened, _ = parted("llama")
    with pytest.raises(ModelError, match="llama: its blocks differ in width"):
        write_gguf(opened, {}, tmp_path / "model.gguf")
