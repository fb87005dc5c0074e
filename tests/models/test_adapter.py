"""Low-rank matrices beside a compressed checkpoint: peft computes with them what the model in memory computes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feeds import inputs_for
from tiny import build

from gossamer.core.errors import ModelError, OutputError, PlanError
from gossamer.models.adapter import load_with_adapter, write_adapter
from gossamer.models.checkpoint import save_compressed, settle
from gossamer.models.hierarchy import Layer
from gossamer.models.low_rank import LowRank
from gossamer.models.open import Opened, open_model
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.reloading import from_pretrained, parity
from gossamer.models.stored import stored_tensors
from gossamer.models.structure import hierarchy_of, read_matrix, write_matrix

ROUNDING = 1e-5


def opened_tiny(name: str) -> Opened:
    model: Any = build(name)
    return Opened(model, hierarchy_of(model, model.config), model.config, name, "sha256:" + "0" * 64)


def on_grid(opened: Opened) -> dict[str, QuantizedTensor]:
    """Every linear layer at 4 bits, groups of 8."""
    tensors = {}
    for layer in opened.hierarchy.layers():
        if layer.kind == "linear":
            matrix = read_matrix(opened.model, layer).float()
            scales = (matrix.reshape(layer.rows, -1, 8).abs().amax(-1) / 7.5).clamp(min=1e-4).half()
            tensors[layer.path] = QuantizedTensor.encode(matrix, Scheme(4, 8), scales)
    return tensors


def low_ranks(opened: Opened) -> dict[str, tuple[Layer, LowRank]]:
    """A random matrix beside every layer, of ranks 1 to 3."""
    draw = torch.Generator().manual_seed(1)
    found = {}
    for number, layer in enumerate(opened.hierarchy.layers()):
        left = 0.3 * torch.randn(layer.rows, 1 + number % 3, generator=draw)
        right = 0.3 * torch.randn(1 + number % 3, layer.columns, generator=draw)
        found[layer.path] = layer, LowRank(left.half(), right.half())
    return found


def written(name: str, directory: Path) -> tuple[Opened, dict[str, tuple[Layer, LowRank]], int]:
    """A model in memory with exactly the stored base weights; its checkpoint and adapter, and the adapter's bytes."""
    opened = opened_tiny(name)
    tensors, matrices = on_grid(opened), low_ranks(opened)
    save_compressed(opened, tensors, directory)
    size = write_adapter(matrices, directory, "acme/tiny")
    settle(opened, tensors)
    return opened, matrices, size


def logits(model: Any, feed: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**feed).logits
    return found


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_base_and_adapter_reloaded_are_the_model_in_memory(name: str, tmp_path: Path) -> None:
    """Linear layers, embeddings and, in llava, a convolution, on 4-bit and 16-bit weights."""
    opened, matrices, size = written(name, tmp_path / "small")
    feed = inputs_for(name, opened.model)
    assert parity(opened, tmp_path / "small", feed) < ROUNDING  # the base by itself, the adapter's folder beside it
    bare = logits(opened.model, feed)
    for layer, matrix in matrices.values():
        write_matrix(opened.model, layer, read_matrix(opened.model, layer) + matrix.dense())
    ours = logits(opened.model, feed)
    assert float((ours - bare).abs().max()) > 0.1
    theirs = logits(load_with_adapter(tmp_path / "small"), feed)
    assert float((ours - theirs).abs().max()) < ROUNDING
    again = logits(open_model(str(tmp_path / "small")).model, feed)
    assert float((ours - again).abs().max()) < ROUNDING
    assert size == sum(matrix.bytes for _, matrix in matrices.values())
    assert size == sum(tensor.bytes for tensor in stored_tensors(tmp_path / "small" / "adapter"))


def test_an_adapter_changes_the_fingerprint(tmp_path: Path) -> None:
    written("llama", tmp_path)
    corrected = open_model(str(tmp_path)).fingerprint
    shutil.rmtree(tmp_path / "adapter")
    assert open_model(str(tmp_path)).fingerprint != corrected


def test_plain_transformers_and_peft_load_it_once_the_base_is_unpacked(tmp_path: Path) -> None:
    from peft import PeftModel

    opened, _, _ = written("llama", tmp_path)
    feed = inputs_for("llama", opened.model)
    base, _ = from_pretrained(tmp_path, dtype=torch.float32)
    base.hf_quantizer.compressor.decompress_model(base)
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(model, feed), logits(load_with_adapter(tmp_path), feed))


def test_scales_are_one_for_every_rank_and_module(tmp_path: Path) -> None:
    _, matrices, _ = written("llama", tmp_path)
    model: Any = load_with_adapter(tmp_path)
    for layer, matrix in matrices.values():
        module = model.get_base_model().get_submodule(layer.module)
        assert module.scaling == {"default": 1.0}
        assert module.r == {"default": matrix.rank}


def test_the_same_matrices_give_the_same_bytes(tmp_path: Path) -> None:
    matrices = low_ranks(opened_tiny("llama"))
    for folder in ("one", "two"):
        write_adapter(matrices, tmp_path / folder, "acme/tiny")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        one, two = ((tmp_path / folder / "adapter" / file).read_bytes() for folder in ("one", "two"))
        assert one == two
    config = json.loads((tmp_path / "one" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/tiny"
    assert str(tmp_path) not in json.dumps(config)


def test_a_matrix_of_another_shape_is_refused(tmp_path: Path) -> None:
    matrix = LowRank(torch.zeros(3, 1).half(), torch.zeros(1, 5).half())
    layer = next(opened_tiny("llama").hierarchy.layers())
    with pytest.raises(PlanError, match=f"layer {layer.path} is 96 x 16, its low-rank matrix is 3 x 5"):
        write_adapter({layer.path: (layer, matrix)}, tmp_path, "acme/tiny")
    assert not list(tmp_path.iterdir())


def test_layers_out_of_reach_are_refused(tmp_path: Path) -> None:
    opened = opened_tiny("mixtral")
    experts = {path: found for path, found in low_ranks(opened).items() if found[0].kind == "expert"}
    with pytest.raises(PlanError, match="out of an adapter's reach"):
        write_adapter(experts, tmp_path, "acme/tiny")


def test_a_matrix_that_peft_would_leave_out_is_found(tmp_path: Path) -> None:
    """SigLIP's pooling head is an nn.MultiheadAttention, which never calls its output projection."""
    opened = opened_tiny("siglip")
    save_compressed(opened, {}, tmp_path)
    write_adapter({path: found for path, found in low_ranks(opened).items() if "head" in path}, tmp_path, "acme/tiny")
    with pytest.raises(ModelError, match=r"reads vision_model\.head\.attention\.out_proj past the adapter"):
        load_with_adapter(tmp_path)


def test_an_adapter_that_is_not_the_checkpoints_is_refused(tmp_path: Path) -> None:
    opened = opened_tiny("llama")
    save_compressed(opened, {}, tmp_path)
    layer, matrix = next(iter(low_ranks(opened).values()))
    write_adapter({"a": (layer, matrix), "b": (replace(layer, module="model.nowhere"), matrix)}, tmp_path, "acme/tiny")
    with pytest.raises(ModelError, match=r"these tensors did not load: base_model\.model\.model\.nowhere"):
        load_with_adapter(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter").write_text("")
    with pytest.raises(OutputError, match="a file is in the way"):
        write_adapter(low_ranks(opened_tiny("llama")), tmp_path, "acme/tiny")
