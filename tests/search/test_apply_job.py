"""Presets of every phase, replayed on a model and exported: what is written is what was made, notes say the rest."""

import json

import pytest
import transformers

from gossamer.models.adapter import load_with_adapter
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
