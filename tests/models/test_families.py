"""Every first-class family: its hierarchy is whole, and a changed layer survives saving and reopening bit for bit."""

from pathlib import Path

import pytest
import torch
from tiny import BUILDERS, build, run
from torch import nn

from gossamer.core.errors import ModelError
from gossamer.core.paths import matches
from gossamer.models.families import FAMILIES, unit_of
from gossamer.models.hierarchy import Layer
from gossamer.models.open import open_model
from gossamer.models.structure import hierarchy_of, modality_of, read_matrix, write_matrix

MODALITIES = {
    "llama": ["embeddings", "language", "head"],
    "llava": ["vision", "projector", "embeddings", "language", "head"],
    "qwen3_vl": ["vision", "projector", "embeddings", "language", "head"],
    "idefics3": ["vision", "projector", "embeddings", "language", "head"],
    "clip": ["vision", "text", "projector", "head"],
    "owlv2": ["vision", "text", "projector", "head"],
    "vit": ["vision", "head"],
    "bert": ["embeddings", "language", "head"],
    "whisper": ["audio", "embeddings", "language", "head"],
    "rwkv": ["embeddings", "language", "head"],
    "mamba": ["embeddings", "language", "head"],
    "mixtral": ["embeddings", "language", "head"],
}


@pytest.mark.parametrize("name", BUILDERS)
def test_parameters_are_counted_exactly_once(name: str) -> None:
    model = build(name)
    hierarchy = hierarchy_of(model, model.config)
    assert not hierarchy.guessed
    assert hierarchy.parameters == model.num_parameters()
    assert {block.path.split(".")[0] for block in hierarchy.blocks()} & {"language", "vision", "text"}
    assert all(block.layers for block in hierarchy.blocks())
    assert len({layer.path for layer in hierarchy.layers()}) == len(list(hierarchy.layers()))
    for layer in hierarchy.layers():
        assert tuple(layer.place(model.get_parameter(layer.tensor)).shape) == layer.shape
    where = modality_of(model, hierarchy)
    for part in hierarchy.modalities:
        counted = sum(tensor.numel() for key, tensor in model.named_parameters() if where[key] == part.name)
        assert counted == part.parameters


@pytest.mark.parametrize("name", BUILDERS)
def test_every_matrix_is_a_layer(name: str) -> None:
    model = build(name)
    hierarchy = hierarchy_of(model, model.config)
    modules = {layer.module for layer in hierarchy.layers()}
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    matrices = {path: module for path, module in model.named_modules() if isinstance(module, kinds)}
    assert {path for path, module in matrices.items() if getattr(module, "groups", 1) == 1} <= modules


@pytest.mark.parametrize("name", MODALITIES)
def test_modalities_stand_in_order(name: str) -> None:
    model = build(name)
    parts = hierarchy_of(model, model.config).modalities
    assert [part.name for part in parts] == MODALITIES[name]
    for part in parts:
        assert not part.root or model.get_submodule(part.root) is not None


@pytest.mark.parametrize("name", BUILDERS)
def test_a_replaced_layer_survives_saving_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "before")
    opened = open_model(str(tmp_path / "before"))
    assert type(opened.model) is type(model)
    assert not opened.model.training
    assert not any(tensor.requires_grad for tensor in opened.model.parameters())
    before = run(name, opened.model)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, run(name, model), strict=True))

    layer = next(layer for block in opened.hierarchy.blocks() for layer in block.layers)
    write_matrix(opened.model, layer, torch.randn(layer.rows, layer.columns, generator=torch.manual_seed(3)))
    changed = run(name, opened.model)
    assert not all(torch.equal(new, old) for new, old in zip(changed, before, strict=True))

    opened.model.save_pretrained(tmp_path / "after")
    again = open_model(str(tmp_path / "after"))
    assert all(torch.equal(new, old) for new, old in zip(run(name, again.model), changed, strict=True))
    assert again.hierarchy == opened.hierarchy
    assert again.fingerprint != opened.fingerprint


def test_fused_sets_are_named_by_globs_that_select_them() -> None:
    for name in BUILDERS:
        model = build(name)
        hierarchy = hierarchy_of(model, model.config)
        for unit, members in hierarchy.units().items():
            assert {layer.path for layer in hierarchy.select(unit)} == {layer.path for layer in members}


@pytest.mark.parametrize(
    ("name", "path", "members"),
    [
        ("llama", "language.blocks.1.self_attn.q_proj", "language.blocks.1.self_attn.{q_proj,k_proj,v_proj}"),
        ("llama", "language.blocks.0.mlp.up_proj", "language.blocks.0.mlp.{gate_proj,up_proj}"),
        ("llama", "language.blocks.0.mlp.down_proj", "language.blocks.0.mlp.down_proj"),
        ("llava", "vision.blocks.0.self_attn.v_proj", "vision.blocks.0.self_attn.{q_proj,k_proj,v_proj}"),
        ("bert", "language.blocks.0.attention.self.key", "language.blocks.0.attention.self.{query,key,value}"),
        ("whisper", "language.blocks.0.encoder_attn.k_proj", "language.blocks.0.encoder_attn.{k_proj,v_proj}"),
        ("whisper", "language.blocks.0.encoder_attn.q_proj", "language.blocks.0.encoder_attn.q_proj"),
        ("rwkv", "language.blocks.0.attention.key", "language.blocks.0.attention.key"),
        (
            "mixtral",
            "language.blocks.0.mlp.experts.3.down_proj",
            "language.blocks.0.mlp.experts.3.{gate_up_proj,gate_proj,up_proj,down_proj}",
        ),
    ],
)
def test_units(name: str, path: str, members: str) -> None:
    model = build(name)
    hierarchy = hierarchy_of(model, model.config)
    layer = next(layer for layer in hierarchy.layers() if layer.path == path)
    assert layer.unit == members
    assert all(matches(layer.unit, member.path) for member in hierarchy.units()[layer.unit])


def test_a_tied_head_is_listed_and_counted_with_its_owner() -> None:
    model = build("qwen2")
    hierarchy = hierarchy_of(model, model.config)
    head = hierarchy.select("head.lm_head")[0]
    assert head.tied_to == "embeddings.embed_tokens"
    assert head.parameters == 0
    assert head.rows == 96


def test_each_matrix_of_stacked_experts_is_a_layer() -> None:
    model = build("mixtral")
    hierarchy = hierarchy_of(model, model.config)
    second = hierarchy.select("language.blocks.0.mlp.experts.2.*")
    assert [layer.path.rpartition(".")[2] for layer in second] == ["gate_up_proj", "down_proj"]
    assert {layer.unit for layer in second} == {second[0].unit}
    layer = second[0]
    assert (layer.kind, layer.shape, layer.index, layer.rows, layer.columns) == ("expert", (48, 16), 2, 48, 16)
    stack = model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
    before = stack.clone()
    assert torch.equal(read_matrix(model, layer), stack[2])
    write_matrix(model, layer, torch.ones(48, 16))
    assert torch.equal(stack[2], torch.ones(48, 16))
    assert torch.equal(stack[[0, 1, 3]], before[[0, 1, 3]])


@pytest.mark.parametrize("name", ["llama", "llava", "bert", "whisper", "vit", "rwkv", "mamba", "owlv2"])
def test_a_bare_model_has_the_same_parts_without_its_head(name: str) -> None:
    whole = build(name)
    bare = getattr(whole, whole.base_model_prefix)
    parts = hierarchy_of(bare, whole.config)
    full = hierarchy_of(whole, whole.config)
    assert not parts.guessed
    assert parts.parameters == sum(tensor.numel() for tensor in bare.parameters())
    blocks = {block.path: block.parameters for block in full.blocks()}
    assert {block.path: block.parameters for block in parts.blocks()} == blocks


def test_rows_cover_each_model_type_once() -> None:
    types = [kind for family in FAMILIES for kind in family.types]
    assert len(types) == len(set(types))


def test_unit_without_a_set_is_the_path() -> None:
    assert unit_of("q_proj") == "q_proj"
    assert unit_of("projector.linear_1") == "projector.linear_1"


def test_a_matrix_of_another_shape_is_refused() -> None:
    model = build("llama")
    layer = hierarchy_of(model, model.config).select("head.lm_head")[0]
    with pytest.raises(ModelError, match=r"head.lm_head takes a matrix of \(96, 16\)"):
        write_matrix(model, layer, torch.zeros(2, 2))


# ---------------------------------------------------------------------------------------------- the fallback


class Stranger(nn.Module):
    """An encoder–decoder of no known family."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.vision = nn.Module()
        self.vision.patch = nn.Conv2d(3, 8, 2)
        self.vision.stages = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
        self.decoder = nn.Module()
        self.decoder.units = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2))
        self.out = nn.Linear(8, 10)


def test_an_unknown_model_is_guessed_and_says_so() -> None:
    model = Stranger()
    hierarchy = hierarchy_of(model, None)
    assert hierarchy.guessed
    assert hierarchy.parameters == sum(tensor.numel() for tensor in model.parameters())
    shape = {part.name: (len(part.blocks), [layer.path for layer in part.layers]) for part in hierarchy.modalities}
    assert shape["embeddings"] == (0, ["embeddings.embed"])
    assert shape["vision"] == (3, ["vision.patch"])
    assert shape["language"][0] == 2
    assert shape["head"] == (0, ["head.out"])


def test_an_unlisted_transformers_model_with_input_major_weights() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=2, n_head=2)).eval()
    hierarchy = hierarchy_of(model, model.config)
    assert hierarchy.guessed
    assert hierarchy.parameters == model.num_parameters()
    layer: Layer = hierarchy.select("**.blocks.0.attn.c_attn")[0]
    assert (layer.rows, layer.columns, layer.shape, layer.transposed) == (24, 8, (8, 24), True)
    matrix = read_matrix(model, layer).clone()
    write_matrix(model, layer, 2 * matrix)
    assert torch.equal(model.get_parameter(layer.tensor), 2 * matrix.T)
