"""Experts in checkpoints: each by a name of its own, which plain transformers unpacks and merges to the same model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from test_checkpoint import IDS, accounted, opened_tiny, rounded
from tiny import build

from gossamer.compress.quantize.rtn import RoundToNearest
from gossamer.models.accounting import account
from gossamer.models.checkpoint import parity, reload, save_compressed, settle
from gossamer.models.open import Opened, open_model
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.stacks import merged, on_grid, shared_schemes, taken_apart
from gossamer.models.structure import read_matrix

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
NAMES = {"mixtral": "block_sparse_moe.experts.2.w3", "qwen2_moe": "mlp.experts.2.up_proj"}


def experts(opened: Opened) -> list[Any]:
    return [layer for layer in opened.hierarchy.layers() if layer.index is not None]


def on_grids(opened: Opened, schemes: dict[str, Scheme]) -> dict[str, QuantizedTensor]:
    layers = {layer.path: layer for layer in opened.hierarchy.layers()}
    found = {}
    for path, scheme in schemes.items():
        settings = (scheme.bits, scheme.group, scheme.symmetric)
        technique = RoundToNearest(*settings, format=scheme.format)
        found[path] = technique.quantize(read_matrix(opened.model, layers[path]), None).tensor
    return found


def exported(opened: Opened, schemes: dict[str, Scheme], folder: Path) -> Any:
    """Written, and compared in every way: bytes by the books, weights and logits of a plain reload."""
    tensors = on_grids(opened, schemes)
    stored = save_compressed(opened, tensors, folder)
    assert stored.weight_bytes == account(opened, schemes).weight_bytes
    settle(opened, tensors)
    assert parity(opened, folder, {"input_ids": IDS}) == 0
    state = reload(folder).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in opened.model.state_dict().items())
    for path, tensor in tensors.items():
        layer = next(layer for layer in experts(opened) if layer.path == path)
        wanted = tensor.dequantize()
        if tensor.scheme.format != "fp8":  # transformers unpacks these in the type of the scales
            wanted = wanted.half().float()
        assert torch.equal(read_matrix(opened.model, layer), wanted)
    return stored


@pytest.mark.parametrize(
    "scheme",
    [Scheme(2), Scheme(3, 4), Scheme(4), Scheme(8), Scheme(8, format="fp8")],
    ids=lambda s: f"{s.bits}{s.format}",
)
@pytest.mark.parametrize("name", FAMILIES)
def test_codes_come_back_to_the_bit(name: str, scheme: Scheme, tmp_path: Path) -> None:
    opened = opened_tiny(name)
    dense = save_compressed(opened, {}, tmp_path / "dense").weight_bytes
    stored = exported(opened, {layer.path: scheme for layer in experts(opened)}, tmp_path / "out")
    assert stored.notes == ()
    assert stored.weight_bytes < dense
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    if name in NAMES:
        part = "weight" if scheme.format == "fp8" else "weight_packed"
        assert f"model.layers.0.{NAMES[name]}.{part}" in names
    again = open_model(str(tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=IDS).logits, opened.model(input_ids=IDS).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_beside_other_layers_on_grids_of_their_own(name: str, tmp_path: Path) -> None:
    opened = opened_tiny(name)
    tensors = {
        layer.path: rounded(read_matrix(opened.model, layer), Scheme(5, 4) if layer.index is not None else Scheme(4))
        for block in opened.hierarchy.blocks()
        for layer in block.layers
    }
    expected = accounted(opened, tensors)
    stored = save_compressed(opened, tensors, tmp_path / "out")
    settle(opened, tensors)
    assert stored.weight_bytes == expected
    assert parity(opened, tmp_path / "out", {"input_ids": IDS}) == 0
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert groups["group_0"]["weights"]["num_bits"] == 5, "transformers takes the first group that speaks of experts"
    assert all("experts" in target for target in groups["group_0"]["targets"])


def test_widths_that_differ_are_held_on_the_coarsest_common_grid(tmp_path: Path) -> None:
    opened = opened_tiny("mixtral")
    schemes = {layer.path: Scheme(2 + layer.index, (None, 8, 4, 8)[layer.index]) for layer in experts(opened)}
    stored = exported(opened, schemes, tmp_path / "out")
    [note] = stored.notes
    assert "with 5 bits for each code and a scale for every 4 columns" in note
    assert "experts.0.down_proj (2 bits, group whole rows)" in note


def test_a_stack_of_which_one_expert_is_dense_is_dense(tmp_path: Path) -> None:
    opened = opened_tiny("qwen2_moe")
    schemes = {layer.path: Scheme(4) for layer in experts(opened)}
    del schemes["language.blocks.0.mlp.experts.2.down_proj"]
    stored = exported(opened, schemes, tmp_path / "out")
    [note] = stored.notes
    assert "at 16 bits, since transformers unpacks experts only where all of a stack" in note
    assert "blocks.0.mlp.experts.0.down_proj" in note
    assert "gate_up_proj" not in note


@pytest.mark.parametrize("scheme", [Scheme(4, None, False), Scheme(4, 16, True, "nvfp4")], ids=["asymmetric", "nvfp4"])
def test_what_does_not_load_stays_dense_and_says_so(scheme: Scheme, tmp_path: Path) -> None:
    opened = opened_tiny("qwen2_moe")
    stored = exported(opened, {layer.path: scheme for layer in experts(opened)}, tmp_path / "out")
    assert any("transformers unpacks experts only where" in note for note in stored.notes)


def test_whole_numbers_and_floats_do_not_mix() -> None:
    layers = experts(opened_tiny("mixtral"))
    schemes = {layer.path: Scheme(8, format="fp8") if layer.index else Scheme(4) for layer in layers}
    assert shared_schemes(layers, schemes) == {}


def test_a_wider_grid_holds_the_same_values() -> None:
    tensor = rounded(torch.randn(6, 24, generator=torch.Generator().manual_seed(0)), Scheme(3, 12))
    wide = on_grid(tensor, Scheme(6, 4))
    assert torch.equal(wide.dequantize(), tensor.dequantize())
    assert wide.scales.shape == (6, 6)
    assert torch.equal(on_grid(wide, wide.scheme).codes, tensor.codes)


def test_what_loading_merges_is_asked_of_transformers() -> None:
    import transformers as hf

    model: Any = build("mixtral")
    assert set(merged(model).values()) == {1, 2}
    stack = model.get_parameter("model.layers.1.mlp.experts.gate_up_proj")
    apart = taken_apart(model, "model.layers.1.mlp.experts.gate_up_proj", stack)
    assert torch.equal(apart["model.layers.1.block_sparse_moe.experts.3.w3.weight"], stack[3, 24:])
    config = hf.GptOssConfig(
        vocab_size=96, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    assert merged(hf.GptOssForCausalLM(config)) == {}
