"""The account of bytes: the published savings, and equality with what is really written."""

import json
from pathlib import Path

import pytest
import torch
from tiny import BUILDERS, build

from gossamer.core.errors import PlanError
from gossamer.models.accounting import Rule, account, parse_rule, schemes_for
from gossamer.models.open import open_model
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.structure import read_matrix

PUBLISHED = [("llama-3-8b", 31, 40.74), ("mistral-7b-v0.1", 31, 45.18), ("qwen3-8b", 35, 40.04)]


@pytest.mark.parametrize(("name", "last", "saving"), PUBLISHED)
def test_two_blocks_at_sixteen_and_the_rest_at_eight(name: str, last: int, saving: float) -> None:
    opened = open_model(name, weights=False)
    schemes = schemes_for(opened.hierarchy, 8, keep=[parse_rule(f"language.blocks.{{0,{last}}}.*=16")])
    bare = account(opened, schemes, scales=False)
    assert round(bare.saving_percent, 2) == saving
    assert bare.dense_bytes == 2 * opened.hierarchy.parameters
    full = account(opened, schemes)
    assert full.weight_bytes == bare.weight_bytes + full.scale_bytes
    rows = sum(layer.rows for layer in opened.hierarchy.layers() if layer.path in schemes)
    assert full.scale_bytes == 2 * rows + 16 * len(schemes)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in ("bert_lm", "roberta_lm", "gemma2")])
def test_the_account_equals_the_written_file(name: str, tmp_path: Path) -> None:
    from gossamer.models.checkpoint import save_compressed

    build(name).save_pretrained(tmp_path / "dense")
    opened = open_model(str(tmp_path / "dense"))
    rules = [Rule("embeddings.**", 8), Rule("projector.**", 3), Rule("*.blocks.1.**", 16)]
    schemes = schemes_for(opened.hierarchy, 4, 8, [rule for rule in rules if opened.hierarchy.select(rule.at)])
    tensors = {}
    for layer in opened.hierarchy.layers():
        if layer.path in schemes:
            scheme = schemes[layer.path]
            matrix = read_matrix(opened.model, layer)
            scales = torch.full((layer.rows, scheme.groups(layer.columns)), 0.01, dtype=torch.float16)
            codes = torch.zeros(matrix.shape, dtype=torch.int8)
            tensors[layer.path] = QuantizedTensor(scheme, tuple(matrix.shape), codes, scales)
    expected = account(open_model(str(tmp_path / "dense"), weights=False), schemes)
    assert save_compressed(opened, tensors, tmp_path / "packed").weight_bytes == expected.weight_bytes


def test_padding_is_counted() -> None:
    opened = open_model("llama-3-8b", weights=False)
    layer = opened.hierarchy.select("language.blocks.0.mlp.down_proj")[0]
    dense = account(opened, {}).weight_bytes - 2 * 4096 * 14336
    assert account(opened, {layer.path: Scheme(3)}, scales=False).weight_bytes == dense + 4096 * 4 * (14336 * 3 // 32)
    grouped = account(opened, {layer.path: Scheme(4, 128)}).weight_bytes
    assert grouped == dense + 4096 * 14336 // 2 + 2 * 4096 * 112 + 16


def test_a_group_that_does_not_divide_is_made_to_fit() -> None:
    schemes = schemes_for(open_model("qwen3-8b", weights=False).hierarchy, 4, 768)
    assert schemes["language.blocks.0.mlp.down_proj"].group == 768
    assert schemes["language.blocks.0.mlp.up_proj"].group == 512


@pytest.mark.parametrize("text", ["language.blocks.0", "=8", "head.*=9", "head.*=eight", "head.*=-4"])
def test_malformed_rules_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match="write PATHS=BITS"):
        parse_rule(text)


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    model = build("llama")
    (tmp_path / "config.json").write_text(json.dumps({**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}))
    opened = open_model(str(tmp_path), weights=False)
    with pytest.raises(PlanError, match="bits cannot be 1"):
        schemes_for(opened.hierarchy, 1)
    with pytest.raises(PlanError, match="group cannot be -4"):
        schemes_for(opened.hierarchy, 4, -4)
    with pytest.raises(PlanError, match="selects no layer"):
        schemes_for(opened.hierarchy, 4, keep=[Rule("vision.**", 8)])
    with pytest.raises(PlanError, match=r"no layer vision\.x"):
        account(opened, {"vision.x": Scheme(4)})
