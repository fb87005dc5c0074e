"""Jobs on a mixture of experts: presets and a search, exported so that plain transformers computes the same."""

import json
import random

import pytest
import torch
import transformers

from gossamer.core.plan import load_plan
from gossamer.models.embedded import embedded_model
from gossamer.models.open import open_model
from gossamer.search import optimize as job
from gossamer.search.finish import PARITY_LIMIT
from gossamer.search.jobs import apply_job
from gossamer.search.request import OptimizeRequest


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A random Qwen2-MoE with tiny-lm's tokenizer, sharpened so that rounding matters: plumbing only."""
    directory = tmp_path_factory.mktemp("mixture") / "lm"
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_model("tiny-lm"))
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=64,
    )  # fmt: skip
    transformers.Qwen2MoeForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "gossamer.json").write_text('{"task": "text", "data": "heldout"}')
    return directory


@pytest.mark.parametrize(
    "preset", ["gptq-w4g32", "prune_experts-75+gptq-w3g32", "wanda-50", "gptq-w3g32+correction-r4", "gptq-w4g32a8"]
)
def test_a_preset_is_exported_as_it_was_made(mixture, tmp_path, preset):
    result = apply_job(preset, str(mixture), tmp_path / "out")
    assert result["parity"] <= (PARITY_LIMIT if "correction" in preset else 0)  # peft adds the factors apart
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_experts"] == (3 if "experts" in preset else 4)
    if "gptq" in preset:
        targets = config["quantization_config"]["config_groups"]["group_0"]["targets"]
        assert all(r"\.experts\." in target for target in targets)
        assert not any("experts" in note and "16 bits" in note for note in result["notes"]), result["notes"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(model(torch.arange(1, 13)[None]).logits).all()


def test_the_search_gives_all_experts_one_setting(mixture, tmp_path):
    words = random.Random(0).choices(["the", "sea", "ship", "wind", "old", "man", "saw", "north", "went", "of"], k=4000)
    (tmp_path / "text.txt").write_text(" ".join(words))
    request = OptimizeRequest(
        str(mixture), tmp_path / "run", task="text", data=str(tmp_path / "text.txt"), effort="quick", ratio=0.5
    )
    result = job.optimize(request)
    assert result["parity"] == 0
    assert result["measured"]["weight_bytes"]["value"] <= result["budget"]["weight_bytes"]
    opened = open_model(str(mixture), weights=False)
    steps = load_plan(tmp_path / "run" / "plan.yaml").compression
    found = {
        (step.settings["bits"], step.settings["group"])
        for step in steps
        if any(layer.index is not None for layer in opened.hierarchy.select(step.at))
    }
    assert len(found) == 1
