"""`inspect`: its fixed keys, its bytes, and its count of multiply-accumulates against torch's own counter."""

import json
from pathlib import Path

import pytest
import torch
from tiny import BUILDERS, build
from torch.utils.flop_counter import FlopCounterMode

from gossamer.models.inspect import inspect, inspect_opened
from gossamer.models.open import open_model
from gossamer.models.structure import hierarchy_of
from gossamer.models.work import work_of


@pytest.mark.parametrize("name", BUILDERS)
def test_bytes_add_up_to_what_is_stored(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.half().save_pretrained(tmp_path)
    opened = open_model(str(tmp_path), weights=False)
    found = inspect_opened(opened)
    assert found["parameters"] == model.num_parameters()
    assert found["weight_bytes"] == opened.stored_bytes
    assert sum(part["weight_bytes"] for part in found["modalities"].values()) == opened.stored_bytes
    for part in found["modalities"].values():
        assert part["weight_bytes"] == 2 * part["parameters"]
    for block in found["blocks"]:
        assert block["weight_bytes"] == 2 * block["parameters"]
    assert sum(part["blocks"] for part in found["modalities"].values()) == len(found["blocks"])
    assert not found["guessed"]
    json.dumps(found)


def test_a_config_alone_gives_bytes_at_its_own_precision() -> None:
    found = inspect("llama-3-8b")
    assert found["weight_bytes"] == 2 * 8_030_261_248
    assert found["stored_as"] == "bfloat16"
    assert found["macs_per_token"] == 8_030_261_248 - 128256 * 4096 - 65 * 4096
    assert found["macs_per_image"] is None


def _counted(model: torch.nn.Module, **inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops() // 2


def test_work_per_token_agrees_with_torch() -> None:
    model = build("llama")
    model.set_attn_implementation("eager")
    work = work_of(hierarchy_of(model, model.config), model.config)
    attention = 2 * 2 * 16  # scores and values of one token, two blocks
    assert _counted(model, input_ids=torch.tensor([[3]])) == work.per_token + attention


@pytest.mark.parametrize("name", ["vit", "deit", "llava"])
def test_work_per_image_agrees_with_torch(name: str) -> None:
    model = build(name)
    work = work_of(hierarchy_of(model, model.config), model.config)
    pixels = torch.randn(1, 3, 16, 16)
    if name != "llava":
        model.set_attn_implementation("eager")
        assert _counted(model, pixel_values=pixels) == work.per_image
        return
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    projector = model.model.multi_modal_projector
    counted = _counted(tower, pixel_values=pixels) + _counted(projector, image_features=torch.randn(1, 4, 16))
    assert counted == work.per_image


def test_only_the_active_experts_work() -> None:
    model = build("mixtral")
    hierarchy = hierarchy_of(model, model.config)
    work = work_of(hierarchy, model.config)
    experts = sum(layer.parameters for layer in hierarchy.layers() if layer.kind == "expert")
    others = sum(layer.parameters for layer in hierarchy.layers() if layer.kind == "linear")
    assert work.per_token == others + experts // 2
