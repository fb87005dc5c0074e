"""Dropping blocks in place, checked against the model that skips them."""

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import build

from gossamer.compress.structure import DropBlock, selected_blocks
from gossamer.core.errors import PlanError
from gossamer.core.technique import build as technique
from gossamer.data.batch import Batch
from gossamer.models.structure import hierarchy_of


def opened(name):
    model = build(name)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(4)
    inputs = inputs_for(name, model)
    return model, hierarchy_of(model, model.config), Batch(inputs, torch.empty(0), (0, 1))


@pytest.mark.parametrize("name", ["llama", "llava", "whisper", "vit"])
def test_the_block_is_gone_and_the_rest_keeps_its_name(name):
    model, hierarchy, batch = opened(name)
    modality = next(part.name for part in hierarchy.modalities if part.blocks)
    smaller = technique("drop_block", {}).reshape(
        model, hierarchy, selected_blocks(hierarchy, f"{modality}.blocks.0"), [batch]
    )
    assert f"{modality}.blocks.1" in [block.path for block in smaller.blocks()]
    assert f"{modality}.blocks.0" not in [block.path for block in smaller.blocks()]
    assert sum(p.numel() for p in model.parameters()) == smaller.parameters < hierarchy.parameters
    assert hierarchy_of(model, model.config).parameters == smaller.parameters
    with pytest.raises(PlanError, match="selects no whole block"):
        selected_blocks(smaller, f"{modality}.blocks.0")


def test_a_block_that_is_read_elsewhere_too_is_refused_and_nothing_changes():
    model, hierarchy, batch = opened("qwen3_vl")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    blocks = selected_blocks(hierarchy, "language.blocks.0")
    with pytest.raises(PlanError, match=r"language\.blocks\.0: the smaller model .* computes something else"):
        DropBlock().reshape(model, hierarchy, blocks, [batch])
    assert hierarchy_of(model, model.config) == hierarchy
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert DropBlock().reshape(model, hierarchy, selected_blocks(hierarchy, "language.blocks.1"), [batch])


def test_a_layer_is_no_block():
    _, hierarchy, _ = opened("llama")
    with pytest.raises(PlanError, match="selects no whole block"):
        selected_blocks(hierarchy, "language.blocks.0.mlp.*")
