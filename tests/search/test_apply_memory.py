"""Keeping the model in a mapped file changes where its values are, never the values."""

import pytest
import torch

from gossamer.compress.apply import apply_steps
from gossamer.compress.presets import preset_steps
from gossamer.data.batch import Batch
from gossamer.models.memory import Scratch
from gossamer.models.open import open_model
from gossamer.search.finish import calibration_batches, finish
from gossamer.search.jobs import apply_job, calibration_on

PRESETS = ["rtn-w4", "gptq-w3g32", "qronos-w4g32", "awq-w4g32", "wanda-2:4+gptq-w4g32", "prune_heads-50", "gptq-w8a8"]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_checkpoint_has_the_same_bytes_as_one_made_in_memory(model, tmp_path, preset):
    mapped = apply_job(preset, str(model), tmp_path / "mapped")
    opened = open_model(str(model))
    batches = calibration_batches(calibration_on(opened, "text", "heldout"), opened)
    applied = apply_steps(opened.model, opened.hierarchy, preset_steps(preset, opened.hierarchy), batches)
    done = finish(opened, applied, tmp_path / "plain", batches[0].inputs)
    assert done.parity == mapped["parity"]
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names == {path.name for path in (tmp_path / "mapped").iterdir()} - {"plan.yaml"}
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "mapped" / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "mapped"}, "the file leaves nothing behind"


def test_the_results_live_in_the_file(model, tmp_path):
    memory = Scratch(tmp_path / "out")
    opened = open_model(str(model), memory=memory)
    steps = preset_steps("magnitude-50+rtn-w4g32", opened.hierarchy)
    applied = apply_steps(opened.model, opened.hierarchy, steps, [], memory=memory)
    codes = [tensor.codes for tensor in applied.tensors.values()]
    assert codes
    assert all(memory.hold(value) is value for value in (*codes, *applied.masks.values()))


def test_statistics_go_once_no_layer_can_share_them(model):
    from weakref import ref

    from gossamer.compress.calibrate import Stream, pass_through
    from gossamer.engine.walk import Walk

    opened = open_model(str(model))
    inputs = {"input_ids": torch.arange(1, 25).reshape(2, 12)}
    batch = Batch(inputs, torch.empty(0), (0, 1))
    stream = Stream(Walk(opened.model, opened.hierarchy, inputs), [batch])
    stream.advance()
    alive, seen = {}, {}

    def meet(layer, statistics):
        name = layer.path.rpartition(".")[2]
        alive[name] = {other for other, known in seen.items() if known() is not None}
        seen[name] = ref(statistics)

    pass_through(opened.model, stream, next(iter(opened.hierarchy.blocks())).layers, meet)
    assert alive["v_proj"] == {"q_proj", "k_proj"}, "one and the same, shared"
    assert alive["up_proj"] >= {"gate_proj"}
    assert not alive["down_proj"] & {"q_proj", "o_proj"}
