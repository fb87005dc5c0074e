"""Compressed checkpoints of every kind of model reload through plain transformers, exactly, at the bytes accounted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BUILDERS, build
from torch import Tensor

from gossamer.core.errors import ModelError, OutputError, PlanError
from gossamer.models.checkpoint import parity, reload, save_compressed, settle
from gossamer.models.containers import Containers
from gossamer.models.hierarchy import Layer
from gossamer.models.open import Opened, open_model
from gossamer.models.packed import QuantizedTensor, Scheme, fitting_group
from gossamer.models.structure import hierarchy_of, read_matrix
from gossamer.models.ties import Ties

IDS = torch.tensor([[1, 5, 9, 33, 7, 2]])
IMAGE = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)


def opened_tiny(name: str, **changes: Any) -> Opened:
    model: Any = build(name).requires_grad_(False)
    return replace(
        Opened(model, hierarchy_of(model, model.config), model.config, name, "sha256:" + "0" * 64), **changes
    )


def rounded(matrix: Tensor, scheme: Scheme) -> QuantizedTensor:
    """Round to nearest, for any scheme."""
    grouped = matrix.reshape(matrix.shape[0], scheme.groups(matrix.shape[1]), -1)
    if scheme.symmetric:
        scales = (grouped.abs().amax(-1) / (scheme.high + 0.5)).clamp(min=1e-4).half()
        return QuantizedTensor.encode(matrix, scheme, scales)
    high, low = grouped.amax(-1).clamp(min=0), grouped.amin(-1).clamp(max=0)
    scales = ((high - low) / (2**scheme.bits - 1)).clamp(min=1e-4).half()
    zeros = (torch.round(-low / scales.float()) + scheme.low).clamp(scheme.low, scheme.high)
    return QuantizedTensor.encode(matrix, scheme, scales, zeros)


def quantised(opened: Opened, layer: Layer, scheme: Scheme) -> QuantizedTensor:
    fitted = replace(scheme, group=fitting_group(layer.columns, scheme.group))
    tensor = rounded(read_matrix(opened.model, layer).float(), fitted)
    return tensor if layer.transposed else replace(tensor, shape=layer.shape)


def mixture(opened: Opened) -> dict[str, QuantizedTensor]:
    """Every layer but each seventh, with bits 2 to 8, whole rows and groups, both symmetries; experts on one grid."""
    tensors = {
        layer.path: quantised(opened, layer, Scheme(2 + index % 7, (None, 8, 16)[index % 3], index % 4 != 3))
        for index, layer in enumerate(opened.hierarchy.layers())
        if index % 7 != 6 and layer.index is None and not layer.transposed
    }
    scheme = Scheme(3, 4)
    return tensors | {
        layer.path: rounded(read_matrix(opened.model, layer), scheme)
        for layer in opened.hierarchy.layers()
        if layer.index is not None
    }


def accounted(opened: Opened, tensors: dict[str, QuantizedTensor]) -> int:
    """The checkpoint's bytes by the books: layers as `Containers` counts them, all else at 16 bits, ties once."""
    containers, layers = Containers.of(opened.model), list(opened.hierarchy.layers())
    kept = Ties.of(opened.model, {layer.module for layer in layers if layer.path in tensors}).kept
    by_name: dict[str, list[Layer]] = {}
    for layer in layers:
        by_name.setdefault(layer.tensor, []).append(layer)
    total = 0
    for name, value in opened.model.state_dict().items():
        if name in kept:
            continue
        for layer in by_name.get(name, ()):
            total += containers.bytes(layer, tensors[layer.path].scheme if layer.path in tensors else None)
        if name not in by_name:
            total += 2 * value.numel() if value.is_floating_point() else value.nbytes
    return total


def inputs_of(name: str) -> dict[str, Tensor]:
    picture = torch.tensor([[1, 90, 90, 90, 90, 7, 2]])
    patches = torch.linspace(-1, 1, 16 * 96).reshape(16, 96)
    return {
        "llava": {"input_ids": picture, "pixel_values": IMAGE},
        "qwen2_vl": {
            "input_ids": torch.tensor([[1, 92, 90, 90, 90, 90, 93, 7]]),
            "pixel_values": patches,
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "mm_token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]]),
        },
        "owlv2": {
            "input_ids": IDS,
            "attention_mask": torch.ones_like(IDS),
            "pixel_values": torch.nn.functional.interpolate(IMAGE, 32),
        },
        "vit": {"pixel_values": IMAGE},
        "whisper": {"input_features": torch.linspace(-1, 1, 8 * 32).reshape(1, 8, 32), "decoder_input_ids": IDS},
        "clip": {"input_ids": IDS, "pixel_values": IMAGE},
    }.get(name, {"input_ids": IDS})


FORWARD = (
    "llama",
    "qwen2",
    "gemma",
    "llava",
    "qwen2_vl",
    "owlv2",
    "vit",
    "bert_lm",
    "whisper",
    "clip",
    "mamba",
    "mixtral",
)


@pytest.mark.parametrize("name", FORWARD)
def test_plain_reload_gives_the_same_logits_at_the_accounted_bytes(name: str, tmp_path: Path) -> None:
    opened = opened_tiny(name)
    tensors = mixture(opened)
    expected = accounted(opened, tensors)
    stored = save_compressed(opened, tensors, tmp_path / "out")
    settle(opened, tensors)
    assert stored.weight_bytes == expected
    assert parity(opened, tmp_path / "out", inputs_of(name)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BUILDERS) - set(FORWARD)))
def test_every_family_reloads_its_exact_weights(name: str, tmp_path: Path) -> None:
    opened = opened_tiny(name)
    tensors = mixture(opened)
    expected = accounted(opened, tensors)
    stored = save_compressed(opened, tensors, tmp_path / "out")
    settle(opened, tensors)
    ours, theirs = opened.model.state_dict(), reload(tmp_path / "out").state_dict()
    assert stored.weight_bytes == expected
    assert set(ours) <= set(theirs)
    assert all(torch.equal(value, theirs[key].to(value.dtype)) for key, value in ours.items())


def test_without_quantised_layers_the_checkpoint_is_the_model_at_16_bits(tmp_path: Path) -> None:
    opened = opened_tiny("qwen2")
    stored = save_compressed(opened, {}, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored.weight_bytes == 2 * opened.hierarchy.parameters
    assert stored.notes == ()
    assert "quantization_config" not in config
    assert config["dtype"] == "float16"


def test_a_tied_head_is_stored_once_until_a_side_is_quantised(tmp_path: Path) -> None:
    opened = opened_tiny("qwen2")
    head = next(layer for layer in opened.hierarchy.layers() if layer.tied_to)
    block = {path: tensor for path, tensor in mixture(opened).items() if ".blocks." in path}
    tied = save_compressed(opened, block, tmp_path / "tied")
    model = reload(tmp_path / "tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    apart = save_compressed(opened, {**block, head.path: quantised(opened, head, Scheme(4, 8))}, tmp_path / "apart")
    model = reload(tmp_path / "apart")
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert apart.weight_bytes - tied.weight_bytes == Containers.of(opened.model).bytes(head, Scheme(4, 8))
    assert any("lm_head.weight" in note for note in apart.notes)


def test_ties_break_in_the_sub_configuration_that_asks_for_them() -> None:
    model: Any = build("qwen2_vl")
    ties = Ties.of(model, {"lm_head"})
    assert ties.broken == {"lm_head.weight"}
    assert Ties.of(model, set()).kept == {"lm_head.weight"}


def test_two_exports_are_byte_identical(tmp_path: Path) -> None:
    for name in ("one", "two"):
        opened = opened_tiny("llava", defaults={"task": "vqa", "data": "scenes"})
        save_compressed(opened, mixture(opened), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"config.json", "gossamer.json", "model.safetensors"} <= set(files)
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_exports_the_embedded_model_with_its_tokenizer_and_no_machine_paths(tmp_path: Path) -> None:
    opened = open_model("tiny-lm")
    tensors = {
        layer.path: quantised(opened, layer, Scheme(4, 32))
        for layer in opened.hierarchy.select("language.blocks.{0,1}")
    }
    stored = save_compressed(opened, tensors, tmp_path / "out")
    again = open_model(str(tmp_path / "out"))
    settle(opened, tensors)
    assert again.stored_bytes == stored.weight_bytes
    assert again.tokenizer("it is a truth")["input_ids"] == opened.tokenizer("it is a truth")["input_ids"]
    assert again.defaults == opened.defaults
    assert parity(opened, tmp_path / "out", {"input_ids": IDS}) <= 1e-4
    texts = [path.read_text() for path in (tmp_path / "out").glob("*.json")]
    assert not any("/embedded/" in text or str(tmp_path) in text for text in texts)


def test_notes_name_what_is_stored_otherwise(tmp_path: Path) -> None:
    opened = opened_tiny("llava")
    notes = " ".join(save_compressed(opened, mixture(opened), tmp_path / "out").notes)
    assert "packed zero points do not load" in notes
    assert "embeddings.embed_tokens (4 bits)" in notes
    assert "vision.embeddings.patch_embedding" in notes


def test_large_weights_turn_the_rest_to_bfloat16(tmp_path: Path) -> None:
    opened = opened_tiny("llama")
    opened.model.get_parameter("model.norm.weight")[0] = 1e5
    stored = save_compressed(opened, mixture(opened), tmp_path / "out")
    assert stored.dtype == "bfloat16"
    assert any("bfloat16" in note for note in stored.notes)
    assert float(reload(tmp_path / "out").model.norm.weight[0]) == float(torch.tensor(1e5).bfloat16())


def test_families_whose_code_reaches_for_weights_take_8_bit_codes() -> None:
    owl, llama = opened_tiny("owlv2"), opened_tiny("llama")
    assert Containers.of(llama.model).unpackable == frozenset()
    layer = next(layer for layer in owl.hierarchy.layers() if layer.path == "vision.blocks.0.self_attn.q_proj")
    assert Containers.of(owl.model).form(layer, Scheme(4, 8)) == "int-quantized"


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    opened = opened_tiny("llama")
    layers = {layer.path: layer for layer in opened.hierarchy.layers()}
    down = layers["language.blocks.0.mlp.down_proj"]
    with pytest.raises(PlanError, match=r"no layer language\.blocks\.9"):
        save_compressed(opened, {"language.blocks.9.x": quantised(opened, down, Scheme(4))}, tmp_path / "out")
    with pytest.raises(PlanError, match="its codes are 16 x 24"):
        save_compressed(opened, {"language.blocks.0.mlp.up_proj": quantised(opened, down, Scheme(4))}, tmp_path / "out")
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError):
        save_compressed(opened, {}, tmp_path / "file")
    opened.model.get_parameter("model.norm.weight")[0] = torch.nan
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds NaN"):
        save_compressed(opened, {}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_reload_notices_lost_tensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    opened = opened_tiny("llama")
    save_compressed(opened, mixture(opened), tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        reload(tmp_path / "out")


def test_a_reloaded_model_is_an_ordinary_one(tmp_path: Path) -> None:
    opened = opened_tiny("llama")
    save_compressed(opened, mixture(opened), tmp_path / "out")
    model: Any = reload(tmp_path / "out")
    assert not any("scale" in key or "packed" in key for key in model.state_dict())
    model.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())
