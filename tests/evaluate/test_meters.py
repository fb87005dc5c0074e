import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gossamer.core.errors import ModelError
from gossamer.evaluate import meters
from gossamer.evaluate.tasks import open_task


def test_latency_is_the_median_after_warm_up():
    calls = []

    def run():
        calls.append(1)
        time.sleep(0.05 if len(calls) <= 2 else 0.002)

    found = meters.latency(run, repeats=5, warmup=2)
    assert len(calls) == 7
    assert 2 <= found.low <= found.value <= found.high
    assert found.value < 50
    assert found.n == 5
    assert "warm-up" in found.method


def test_latencies_of_a_language_model(text_model):
    prefill = meters.prefill_latency(text_model, tokens=32, repeats=3, warmup=1)
    decode = meters.decode_latency(text_model, context=32, new=4, repeats=3, warmup=1)
    assert prefill.value > 0
    assert decode.value > 0
    assert decode.n == 3


def test_latency_of_an_image_encoder(vlm, text_model):
    batch = next(open_task("vqa", "scenes", vlm, limit=2).batches(2))
    assert meters.image_latency(vlm.model, batch.inputs, repeats=2, warmup=1).value > 0
    assert meters.prefill_latency(vlm.model, tokens=16, repeats=2, warmup=1).value > 0
    with pytest.raises(ModelError, match="encodes no images"):
        meters.image_latency(text_model, batch.inputs)
    with pytest.raises(ModelError, match="pixel_values"):
        meters.image_latency(vlm.model, {})


def test_peak_memory_sees_what_is_held_for_a_moment():
    def run():
        block = np.ones(40_000_000 // 8)
        time.sleep(0.05)
        return block.sum()

    result, found = meters.peak_memory(run)
    assert result == 5_000_000
    assert 35e6 < found.value < 80e6
    assert meters.process_peak_bytes() > 50e6


def test_weight_bytes_on_disk(tmp_path):
    save_file(
        {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.int8)}, tmp_path / "model.safetensors", {"x": "y"}
    )
    assert meters.disk_bytes(tmp_path) == 67
    save_file({"c": torch.zeros(2, dtype=torch.float16)}, tmp_path / "other.safetensors")
    assert meters.disk_bytes(tmp_path) == 71
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ModelError, match="truncated safetensors file"):
        meters.disk_bytes(path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match="no safetensors"):
        meters.disk_bytes(tmp_path / "none")


def test_weight_bytes_in_memory_count_shared_tensors_once():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
    assert meters.memory_bytes(model) == 128
    model[1].weight = model[0].weight
    assert meters.memory_bytes(model) == 64
