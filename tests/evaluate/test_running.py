"""Models measured side by side: which stages each has, and that what fails is said. Times are not judged."""

import pytest
import torch
from standins import llama

from gossamer.evaluate import running
from gossamer.evaluate.meters import memory_bytes
from gossamer.evaluate.tasks import open_task


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(running, "ROUNDS", 3)
    monkeypatch.setattr(running, "WARMUP", 1)


@pytest.fixture(scope="module")
def vit():
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    return ViTForImageClassification(config).eval()


def test_language_models_side_by_side(text_model):
    other = llama(positions=32)
    before = {name: tensor.clone() for name, tensor in text_model.state_dict().items()}
    found = running.measure_running((text_model, other), {"input_ids": torch.arange(8)[None]})
    assert found.notes == ()
    for model, figures in zip((text_model, other), found.figures, strict=True):
        assert set(figures) == {"prefill_ms", "decode_ms", "weight_memory_bytes"}
        assert figures["weight_memory_bytes"].value == memory_bytes(model)
        for stage in ("prefill_ms", "decode_ms"):
            assert 0 < figures[stage].low <= figures[stage].value <= figures[stage].high
            assert figures[stage].n == 3
            assert "quartiles" in figures[stage].method
    assert "24 tokens" in found.figures[0]["prefill_ms"].method, "the prompt leaves room in the shorter model"
    assert set(found.ratios) == {"prefill_ms", "decode_ms"}
    assert all(0 < ratio.low <= ratio.value <= ratio.high for ratio in found.ratios.values())
    assert all(tensor.equal(before[name]) for name, tensor in text_model.state_dict().items())


def test_images_are_timed_where_they_are_encoded(vlm, text_model):
    inputs = next(open_task("vqa", "scenes", vlm, limit=1).batches(1)).inputs
    alone = running.measure_running((vlm.model,), inputs)
    assert set(alone.figures[0]) == {"prefill_ms", "decode_ms", "image_ms", "weight_memory_bytes"}
    assert alone.ratios == {}
    beside = running.measure_running((vlm.model, text_model), inputs)
    assert "image_ms" in beside.figures[0]
    assert "image_ms" not in beside.figures[1]
    assert set(beside.ratios) == {"prefill_ms", "decode_ms"}


def test_a_model_that_does_not_generate_is_timed_as_a_whole(vit):
    found = running.measure_running((vit, vit), {"pixel_values": torch.zeros(1, 3, 16, 16)})
    assert set(found.figures[0]) == {"latency_ms", "weight_memory_bytes"}
    assert found.figures[0]["latency_ms"].value > 0


def test_a_stage_that_fails_is_said_and_costs_nothing_else(vit):
    found = running.measure_running((vit,), {"pixel_values": torch.zeros(1, 3, 7, 7)})
    assert set(found.figures[0]) == {"weight_memory_bytes"}
    assert "latency_ms was not measured" in found.notes[0]


def test_large_models_have_fewer_rounds(text_model, monkeypatch):
    monkeypatch.setattr(running, "LARGE", 1)
    monkeypatch.setattr(running, "FEW_ROUNDS", 2)
    found = running.measure_running((text_model,), {"input_ids": torch.arange(8)[None]})
    assert found.figures[0]["prefill_ms"].n == 2
