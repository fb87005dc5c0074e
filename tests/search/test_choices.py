"""Units: fused sets stay together, containers are paid for, ties are one unit, bytes are the checkpoint's."""

from types import SimpleNamespace

import pytest
from tests.models.tiny import build

from gossamer.compress.presets import uniform_schemes
from gossamer.models.accounting import account
from gossamer.models.containers import Containers
from gossamer.models.structure import hierarchy_of
from gossamer.search.front import UNIFORM, allocations, options_of, undefeated
from gossamer.search.units import assignment_of, choice_in, describe, fixed_bytes, mean_bits, total_bytes, units_of


def made(name, granularity="layer"):
    model = build(name)
    opened = SimpleNamespace(model=model, hierarchy=hierarchy_of(model, model.config))
    units = units_of(opened.hierarchy, Containers.of(model), granularity)
    return opened, units, fixed_bytes(account(opened, {}).weight_bytes, units)


@pytest.mark.parametrize("name", ["llama", "qwen2", "llava", "owlv2", "whisper", "vit", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_bytes_of_any_choice_are_those_of_the_checkpoint(name, granularity):
    opened, units, fixed = made(name, granularity)
    for pick in (lambda unit: 1, lambda unit: len(unit.choices) - 1, lambda unit: len(unit.choices) // 2):
        chosen = [pick(unit) for unit in units]
        assert fixed + total_bytes(units, chosen) == account(opened, assignment_of(units, chosen)).weight_bytes


def test_fused_sets_share_and_blocks_hold_all_their_matrices():
    _, units, _ = made("llama")
    by_name = {unit.name: unit for unit in units}
    fused = by_name["language.blocks.0.self_attn.{q_proj,k_proj,v_proj}"]
    assert len(fused.layers) == 3
    assert all(len({scheme for _, scheme in choice.schemes}) <= 1 for choice in fused.choices)
    _, blocks, _ = made("llama", "block")
    assert len({unit.name: unit for unit in blocks}["language.blocks.0"].layers) == 7


def test_a_tied_head_and_its_embedding_are_one_unit():
    _, units, _ = made("qwen2")
    embedding = next(unit for unit in units if unit.modality == "embeddings")
    assert [layer.kind for layer in embedding.layers] == ["embedding", "linear"]
    assert not any(unit.modality == "head" for unit in units)
    assert all(len(choice.schemes) == 2 for choice in embedding.choices[1:])


@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_all_experts_of_a_model_are_one_unit(granularity):
    opened, units, _ = made("mixtral", granularity)
    experts = [layer for layer in opened.hierarchy.layers() if layer.index is not None]
    holders = [unit for unit in units if any(layer.index is not None for layer in unit.layers)]
    assert [unit.layers for unit in holders] == [tuple(experts)]
    assert {layer.path for layer in opened.hierarchy.select(holders[0].name)} == {layer.path for layer in experts}
    for choice in holders[0].choices[1:]:
        assert len({scheme for _, scheme in choice.schemes}) == 1
        assert len(choice.schemes) == len(experts)


def test_the_front_runs_from_the_least_bytes_to_sixteen_bits():
    opened, units, _ = made("llama")
    losses = [[0.0 if c == 0 else 1.0 / choice.bytes for c, choice in enumerate(unit.choices)] for unit in units]
    choices = allocations(units, options_of(units, losses), 9)
    sizes = [total_bytes(units, chosen) for chosen in choices]
    assert sizes == sorted(sizes)
    assert sizes[0] == sum(min(choice.bytes for choice in unit.choices) for unit in units)
    assert choices[-1] == [0] * len(units)
    assert mean_bits(opened.hierarchy, assignment_of(units, choices[-1])) == 16


@pytest.mark.parametrize("name", ["llama", "qwen2", "llava", "owlv2", "qwen2_moe"])
@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize("scheme", UNIFORM, ids=describe)
def test_every_uniform_setting_is_a_choice_of_every_unit(name, granularity, scheme):
    opened, units, fixed = made(name, granularity)
    uniform = uniform_schemes(opened.hierarchy, scheme)
    chosen = [choice_in(unit, uniform) for unit in units]
    assert assignment_of(units, chosen) == uniform
    assert fixed + total_bytes(units, chosen) == account(opened, uniform).weight_bytes


def test_undefeated_points_fall():
    points = [SimpleNamespace(weight_bytes=b, kl=k) for b, k in [(10, 5.0), (20, 6.0), (20, 3.0), (30, 3.0), (40, 1.0)]]
    assert [(p.weight_bytes, p.kl) for p in undefeated(points)] == [(10, 5.0), (20, 3.0), (40, 1.0)]
