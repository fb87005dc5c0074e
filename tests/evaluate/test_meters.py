import mmap
import time

import pytest
import torch
from safetensors.torch import save_file

from gossamer.core.errors import ModelError
from gossamer.evaluate import meters
from gossamer.evaluate.tasks import open_task


def test_runs_take_turns_and_warm_up_does_not_count():
    calls = []

    def clock(name):
        def run():
            calls.append(name)
            return float(len(calls))

        return run

    times = meters.in_turn([clock("a"), clock("b")], repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert times.tolist() == [[5, 7, 9], [6, 8, 10]]


def test_latency_is_the_median_with_quartiles():
    found = meters.latency([5.0, 1.0, 2.0, 100.0, 4.0], "of five")
    assert (found.low, found.value, found.high, found.n, found.method) == (2, 4, 5, 5, "of five")


def test_a_clock_counts_milliseconds():
    assert 2 <= meters.clock_of(lambda: time.sleep(0.002))() < 1000


def test_clocks_of_a_language_model(text_model):
    fed = []
    hook = text_model.register_forward_pre_hook(
        lambda _, __, given: fed.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        assert meters.prefill_clock(text_model, tokens=32)() > 0
        assert meters.decode_clock(text_model, context=32, new=4)() > 0
    finally:
        hook.remove()
    assert fed == [32, 32, 1, 1, 1, 1]


def test_clock_of_an_image_encoder(vlm, text_model):
    batch = next(open_task("vqa", "scenes", vlm, limit=2).batches(2))
    assert meters.image_clock(vlm.model, batch.inputs)() > 0
    assert meters.prefill_clock(vlm.model, tokens=16)() > 0
    assert meters.forward_clock(vlm.model, batch.inputs)() > 0
    with pytest.raises(ModelError, match="encodes no images"):
        meters.image_clock(text_model, batch.inputs)
    with pytest.raises(ModelError, match="pixel_values"):
        meters.image_clock(vlm.model, {})


def test_peak_memory_sees_what_is_held_for_a_moment():
    def run():
        with mmap.mmap(-1, 40_000_000) as block:  # pages that this process never had, whatever its allocator has kept
            for place in range(0, len(block), mmap.PAGESIZE):
                block[place] = 1
            time.sleep(0.05)
            return len(block)

    result, found = meters.peak_memory(run)
    assert result == 40_000_000
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
