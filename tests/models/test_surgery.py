"""Surgery: what is left computes what the whole computes without the parts, and plain transformers reloads it."""

import pytest
import torch
import transformers as hf
from tests.models.feeds import inputs_for
from tests.models.tiny import BUILDERS, build

from gossamer.core.errors import PlanError
from gossamer.models.checkpoint import save_compressed, settle
from gossamer.models.open import Opened, open_model
from gossamer.models.reloading import plain
from gossamer.models.structure import hierarchy_of, read_matrix, write_matrix
from gossamer.models.surgery import adopt, channels_of, drop_blocks, heads_of, narrow, tower_of

STANDING = {
    "rwkv": {"language.blocks.0", "language.blocks.1"},
    "rwkv_deep": {"language.blocks.0"},
    "qwen3_vl": {"vision.blocks.0"},
}
"""Blocks that no config describes the model without: RWKV's first has a norm of its own, and one alone does not
load; the only output that Qwen3-VL's projector taps here is the first block's."""
OTHER_FUNCTION = {("qwen3_vl", "language.blocks.0")}
"""What is tapped there is added behind the language model's first blocks, whichever these are."""
NO_CHANNELS = {
    ("qwen2_vl", "vision"): "computed from mlp_ratio",
    ("siglip", "vision"): "the pooling head has the same width",
    ("mamba", "language"): "no MLP",
    ("mixtral", "language"): "stacked experts",
    ("qwen3_moe", "language"): "stacked experts",
}
HEADS = {
    ("llama", "language"), ("mistral", "language"), ("qwen2", "language"), ("qwen3", "language"), ("gemma", "language"),
    ("gemma2", "language"), ("gemma3", "language"), ("llava", "language"), ("llava_next", "language"),
    ("llava_onevision", "language"), ("qwen3_vl", "language"), ("idefics3", "language"), ("smolvlm", "language"),
    ("paligemma", "language"), ("mixtral", "language"), ("qwen2_moe", "language"), ("qwen3_moe", "language"),
    ("vit", "vision"), ("deit", "vision"),
}  # fmt: skip


FAST = {"llama", "qwen2", "qwen3_vl", "llava", "clip", "owlv2", "vit", "bert", "whisper", "rwkv", "mixtral"}


def families(*more):
    """All families, most of them among the slow tests."""
    rest = [pytest.param(name, marks=pytest.mark.slow) for name in sorted(BUILDERS.keys() - FAST)]
    return [*sorted(FAST), *more, *rest]


def gpt2():
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=96, n_positions=64, n_embd=16, n_layer=3, n_head=4))


def opt():
    return hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=96,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=16,
        )
    )


def mixed(kind, **extra):
    """Four blocks of a family whose blocks are not all alike."""
    config = build(kind).config.to_dict()
    return type(build(kind))(type(build(kind).config).from_dict({**config, "num_hidden_layers": 4, **extra}))


MORE = {
    "gpt2": gpt2,
    "opt": opt,
    "gemma2_mixed": lambda: mixed("gemma2", layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=3),
    "gemma3_mixed": lambda: mixed(
        "gemma3",
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=3,
    ),
    "qwen3_moe_mixed": lambda: mixed("qwen3_moe", mlp_only_layers=[1, 3]),
    "llama_deep": lambda: mixed("llama"),
    "rwkv_deep": lambda: mixed("rwkv", num_hidden_layers=3),
}


def opened(name):
    """A model with weights large enough for every part of it to matter."""
    torch.manual_seed(0)
    model = (MORE[name]() if name in MORE else build(name)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        if "embed" not in key and parameter.dim() == 2:
            parameter.mul_(6)
        elif parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, hierarchy_of(model, model.config), inputs_for(name, model)


def outputs(model, inputs):
    with torch.no_grad():
        found = model(**inputs)
    return {k: v for k, v in found.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def skipped(model, blocks, inputs):
    def skip(forward):
        def nothing(*args, **kwargs):
            output = forward(*args, **kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return nothing

    modules = [model.get_submodule(block.module) for block in blocks]
    for module in modules:
        module.__dict__["forward"] = skip(module.forward)
    found = outputs(model, inputs)
    for module in modules:
        del module.__dict__["forward"]
    return found


def same(a, b, tolerance):
    assert a.keys() == b.keys()
    return all(float((a[k] - b[k]).abs().max()) <= tolerance * float(a[k].abs().max()) for k in a)


EXACT = 3e-6
"""Bit-equal models differ by this much where a library takes another path for tensors aligned otherwise."""


def check_reload(model, inputs, directory):
    model.save_pretrained(directory)
    again = plain(directory).eval()
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert same(outputs(model, inputs), outputs(again, inputs), EXACT)
    assert hierarchy_of(again, again.config).parameters == hierarchy_of(model, model.config).parameters


@pytest.mark.parametrize("name", families(*MORE))
def test_a_model_without_a_block_is_the_model_that_skips_it(name, tmp_path):
    model, hierarchy, inputs = opened(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    whole = outputs(model, inputs)
    for block in hierarchy.blocks():
        if block.path in STANDING.get(name, ()):
            with pytest.raises(PlanError, match="this family"):
                drop_blocks(model, hierarchy, [block.path])
            continue
        found = drop_blocks(model, hierarchy, [block.path])
        wanted = skipped(model, [block], inputs)
        expected = (name, block.path) not in OTHER_FUNCTION
        assert same(wanted, outputs(found.model, inputs), EXACT) is expected, block.path
        left = [other.path for other in hierarchy.blocks() if other.path != block.path]
        assert [other.path for other in found.hierarchy.blocks()] == left
        assert all(found.model.get_submodule(other.module) is not None for other in found.hierarchy.blocks())
        assert found.hierarchy.parameters == hierarchy.parameters - block.parameters
        if block.path.endswith("1"):
            check_reload(found.model, inputs, tmp_path / block.path)
    assert same(whole, outputs(model, inputs), EXACT), "the model itself changed"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["gemma2_mixed", "gemma3_mixed", "qwen3_moe_mixed", "llama_deep"])
@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 3)])
def test_blocks_of_different_kinds_keep_their_kind(name, gone, tmp_path):
    model, hierarchy, inputs = opened(name)
    paths = [f"language.blocks.{number}" for number in gone]
    blocks = [block for block in hierarchy.blocks() if block.path in paths]
    found = drop_blocks(model, hierarchy, paths)
    assert same(skipped(model, blocks, inputs), outputs(found.model, inputs), EXACT)
    assert found.model.config.num_hidden_layers == 4 - len(gone)
    check_reload(found.model, inputs, tmp_path)


def test_original_names_survive_several_operations():
    model, hierarchy, inputs = opened("llama_deep")
    first = drop_blocks(model, hierarchy, ["language.blocks.1"])
    assert [(b.path[-1], b.module[-1]) for b in first.hierarchy.blocks()] == [("0", "0"), ("2", "1"), ("3", "2")]
    layer = first.hierarchy.select("language.blocks.3.mlp.up_proj")[0]
    old = hierarchy.select("language.blocks.3.mlp.up_proj")[0]
    assert torch.equal(read_matrix(first.model, layer), read_matrix(model, old))
    assert layer.unit == "language.blocks.3.mlp.{gate_proj,up_proj}"
    second = drop_blocks(first.model, first.hierarchy, ["language.blocks.2"])
    direct = drop_blocks(model, hierarchy, ["language.blocks.1", "language.blocks.2"])
    assert second.hierarchy == direct.hierarchy
    assert same(outputs(second.model, inputs), outputs(direct.model, inputs), EXACT)
    with pytest.raises(PlanError, match=r"no block language\.blocks\.2"):
        drop_blocks(second.model, second.hierarchy, ["language.blocks.2"])


def test_llava_reads_the_same_hidden_state_of_its_smaller_tower():
    model, hierarchy, inputs = opened("llava")
    assert model.config.vision_feature_layer == -2, "which makes the last block's output unread"
    last = drop_blocks(model, hierarchy, ["vision.blocks.1"])
    assert last.model.config.vision_feature_layer == -1
    assert same(outputs(model, inputs), outputs(last.model, inputs), EXACT)
    first = drop_blocks(model, hierarchy, ["vision.blocks.0"])
    assert first.model.config.vision_feature_layer == -2
    assert not same(outputs(model, inputs), outputs(first.model, inputs), 1e-3)


def test_towers_shrink_together_and_shared_tensors_stay_shared():
    model, hierarchy, _ = opened("qwen2_vl")
    found = drop_blocks(model, hierarchy, ["vision.blocks.0", "language.blocks.1"])
    assert found.model.config.vision_config.depth == 1
    assert found.model.config.text_config.num_hidden_layers == 1
    assert found.model.lm_head.weight is found.model.model.language_model.embed_tokens.weight
    assert found.model.lm_head.weight is model.lm_head.weight


def test_generation_with_a_cache_counts_the_blocks_anew():
    model, hierarchy, inputs = opened("llama_deep")
    adopt(model, drop_blocks(model, hierarchy, ["language.blocks.0", "language.blocks.2"]).model)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(inputs["input_ids"], use_cache=True, **settings)
    assert torch.equal(cached, model.generate(inputs["input_ids"], use_cache=False, **settings))


def test_a_tower_keeps_a_block():
    model, hierarchy, _ = opened("llama")
    with pytest.raises(PlanError, match=r"language\.blocks: all 2 blocks would go"):
        drop_blocks(model, hierarchy, ["language.blocks.0", "language.blocks.1"])


def towers(hierarchy):
    return [(part.name, tower_of(hierarchy, part.blocks[0].path)) for part in hierarchy.modalities if part.blocks]


def choice(units, count):
    """Other units in every block."""
    generator = torch.Generator().manual_seed(2)
    return {path: torch.randperm(units.count, generator=generator)[:count].sort().values for path in units.parts}


def silence(model, units, keep):
    """Zeroes the columns that read what goes."""
    for path, layer in units.readers.items():
        weight = read_matrix(model, layer).clone()
        gone = torch.ones(units.count, dtype=torch.bool)
        gone[keep[path]] = False
        weight[:, units.columns(path)[gone].flatten()] = 0
        write_matrix(model, layer, weight)


def check_narrowed(model, hierarchy, inputs, units, count, directory):
    keep = choice(units, count)
    whole = outputs(model, inputs)
    silence(model, units, keep)
    wanted = outputs(model, inputs)
    assert not same(whole, wanted, 1e-3), "what goes must matter"
    found = narrow(model, hierarchy, units, keep)
    assert same(wanted, outputs(found.model, inputs), 3e-5)
    assert found.hierarchy.parameters < hierarchy.parameters
    check_reload(found.model, inputs, directory)


@pytest.mark.parametrize("name", families("gpt2", "opt"))
def test_channels_that_nothing_reads_can_be_cut_out(name, tmp_path):
    _, hierarchy, _ = opened(name)
    for tower, blocks in towers(hierarchy):
        model, hierarchy, inputs = opened(name)
        if (name, tower) in NO_CHANNELS:
            with pytest.raises(PlanError, match="channels cannot be removed"):
                channels_of(model, blocks)
            continue
        units = channels_of(model, blocks)
        assert units.count == (64 if name == "gpt2" else 24)
        check_narrowed(model, hierarchy, inputs, units, 7, tmp_path / tower)


@pytest.mark.parametrize("name", families("gpt2", "opt"))
def test_heads_that_nothing_reads_can_be_cut_out(name, tmp_path):
    _, hierarchy, _ = opened(name)
    for tower, blocks in towers(hierarchy):
        model, hierarchy, inputs = opened(name)
        if (name, tower) not in HEADS:
            with pytest.raises(PlanError, match=rf"{tower}\.blocks: heads cannot be removed"):
                heads_of(model, blocks)
            continue
        check_narrowed(model, hierarchy, inputs, heads_of(model, blocks), 1, tmp_path / tower)


def test_a_group_is_a_key_value_head_with_its_query_heads():
    model, hierarchy, _ = opened("llama")
    units = heads_of(model, tower_of(hierarchy, "language.blocks.0"))
    keep = {path: torch.tensor([1]) for path in units.parts}
    config = narrow(model, hierarchy, units, keep).model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 4)
    attention = narrow(model, hierarchy, units, keep).model.model.layers[0].self_attn
    before = model.model.layers[0].self_attn
    assert torch.equal(attention.q_proj.weight, before.q_proj.weight[8:])
    assert torch.equal(attention.k_proj.weight, before.k_proj.weight[4:])
    assert torch.equal(attention.o_proj.weight, before.o_proj.weight[:, 8:])


def test_fused_gate_and_up_rows_are_cut_from_both_halves():
    config = hf.Phi3Config(
        vocab_size=96, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    torch.manual_seed(0)
    model = hf.Phi3ForCausalLM(config).eval().requires_grad_(False)
    hierarchy = hierarchy_of(model, model.config)
    units = channels_of(model, tower_of(hierarchy, "language.blocks.0"))
    keep = choice(units, 9)
    silence(model, units, keep)
    inputs = {"input_ids": torch.arange(3, 12)[None]}
    found = narrow(model, hierarchy, units, keep)
    assert found.model.model.layers[0].mlp.gate_up_proj.weight.shape == (18, 16)
    assert same(outputs(model, inputs), outputs(found.model, inputs), 1e-5)


def uneven(units):
    """Other numbers of units in every block."""
    generator = torch.Generator().manual_seed(2)
    return {
        path: torch.randperm(units.count, generator=generator)[: 7 + 2 * n].sort().values
        for n, path in enumerate(units.parts)
    }


@pytest.mark.parametrize("name", [*families(), "opt"])
def test_widths_may_differ_by_block(name, tmp_path):
    """The models so cut compute what is left, and come back through the loader that a user has."""
    _, hierarchy, _ = opened(name)
    for tower, blocks in towers(hierarchy):
        if (name, tower) in NO_CHANNELS:
            continue
        model, hierarchy, inputs = opened(name)
        units = channels_of(model, blocks)
        keep = uneven(units)
        silence(model, units, keep)
        wanted = outputs(model, inputs)
        found = narrow(model, hierarchy, units, keep)
        assert same(wanted, outputs(found.model, inputs), 3e-5)
        assert isinstance(found.model, type(model))
        assert type(found.model).__name__ == f"Gossamer{type(model).__name__}"
        assert [layer.columns for layer in channels_of_blocks(found.hierarchy, units)] == [7, 9, 11][: len(blocks)]
        assert found.hierarchy.parameters == hierarchy_of(found.model, found.model.config).parameters
        whole = Opened(found.model, found.hierarchy, found.model.config, name, "")
        save_compressed(whole, {}, tmp_path / tower)
        settle(whole, {})
        again = plain(tmp_path / tower).eval()
        assert type(again).__module__.startswith("transformers_modules.")
        assert same(outputs(found.model, inputs), outputs(again, inputs), EXACT)
        own = open_model(str(tmp_path / tower))
        assert type(own.model) is type(found.model)
        assert same(outputs(found.model, inputs), outputs(own.model, inputs), EXACT)
        assert own.hierarchy == hierarchy_of(found.model, found.model.config)


def channels_of_blocks(hierarchy, units):
    """The layers that read the channels, as they are now."""
    paths = {layer.path for layer in units.readers.values()}
    return [layer for layer in hierarchy.layers() if layer.path in paths]


def gemma3n():
    config = hf.Gemma3nTextConfig(
        vocab_size=96, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, vocab_size_per_layer_input=96, hidden_size_per_layer_input=8,
        laurel_rank=4, num_kv_shared_layers=0, layer_types=["full_attention"] * 3, pad_token_id=0,
    )  # fmt: skip
    return hf.Gemma3nForCausalLM(config)


def test_a_config_with_a_width_for_each_block_needs_no_code(tmp_path):
    torch.manual_seed(0)
    model = gemma3n().eval().requires_grad_(False)
    hierarchy, inputs = hierarchy_of(model, model.config), {"input_ids": torch.arange(3, 12)[None]}
    units = channels_of(model, tower_of(hierarchy, "language.blocks.0"))
    keep = uneven(units)
    silence(model, units, keep)
    found = narrow(model, hierarchy, units, keep)
    assert found.model.config.intermediate_size == [7, 9, 11]
    assert type(found.model) is hf.Gemma3nForCausalLM
    assert same(outputs(model, inputs), outputs(found.model, inputs), 3e-5)
    check_reload(found.model, inputs, tmp_path)


def test_blocks_and_heads_go_after_widths_have_parted():
    model, hierarchy, inputs = opened("llama_deep")
    units = channels_of(model, tower_of(hierarchy, "language.blocks.0"))
    found = narrow(model, hierarchy, units, uneven(units))
    block = next(block for block in hierarchy.blocks() if block.path == "language.blocks.1")
    wanted = skipped(found.model, [block], inputs)
    fewer = drop_blocks(found.model, found.hierarchy, [block.path])
    assert same(wanted, outputs(fewer.model, inputs), EXACT)
    assert [layer.columns for layer in channels_of_blocks(fewer.hierarchy, units)] == [7, 11, 13]
    heads = heads_of(fewer.model, tower_of(fewer.hierarchy, "language.blocks.0"))
    keep = {path: torch.tensor([1]) for path in heads.parts}
    silence(fewer.model, heads, keep)
    narrower = narrow(fewer.model, fewer.hierarchy, heads, keep)
    assert same(outputs(fewer.model, inputs), outputs(narrower.model, inputs), 3e-5)
    with pytest.raises(PlanError, match="channels cannot be removed"):
        channels_of(fewer.model, tower_of(fewer.hierarchy, "language.blocks.0"))


def test_towers_part_one_after_the_other():
    model, hierarchy, inputs = opened("llava")
    for tower in ("vision", "language"):
        units = channels_of(model, tower_of(hierarchy, f"{tower}.blocks.0"))
        keep = uneven(units)
        silence(model, units, keep)
        wanted, found = outputs(model, inputs), narrow(model, hierarchy, units, keep)
        assert same(wanted, outputs(found.model, inputs), 3e-5)
        model, hierarchy = found.model, found.hierarchy
    assert len(model.config.gossamer_widths) == 4 + 6


def test_a_model_that_became_another_is_of_its_class():
    model, hierarchy, inputs = opened("llama")
    units = channels_of(model, tower_of(hierarchy, "language.blocks.0"))
    found = narrow(model, hierarchy, units, uneven(units)).model
    wanted, kind = outputs(found, inputs), type(found)
    adopt(model, found)
    assert type(model) is kind
    assert same(wanted, outputs(model, inputs), 0)


def test_what_cannot_be_cut_is_refused():
    model, hierarchy, _ = opened("llama")
    units = channels_of(model, tower_of(hierarchy, "language.blocks.0"))
    with pytest.raises(PlanError, match="every block of the tower"):
        narrow(model, hierarchy, units, {"language.blocks.0": torch.arange(8)})
    with pytest.raises(PlanError, match="at least one"):
        narrow(model, hierarchy, units, {path: torch.arange(n) for n, path in enumerate(units.parts)})
    model, hierarchy, _ = opened("gpt2")  # its layers are input-major, not linear ones
    units = channels_of(model, tower_of(hierarchy, "language.blocks.0"))
    with pytest.raises(PlanError, match="no config of this family describes the model with 7 and 9 and 11 of 64 units"):
        narrow(model, hierarchy, units, uneven(units))
