"""Tensors in a mapped file are ordinary tensors whose pages come and go."""

import gc
import sys
from pathlib import Path

import pytest
import torch
from tiny import BUILDERS, build

from gossamer.core.errors import OutputError
from gossamer.models.memory import IN_MEMORY, Scratch
from gossamer.models.open import open_model

DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn, torch.int64)


def resident() -> int:
    """Bytes of this process's resident set."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def test_values_stay_when_the_pages_go(tmp_path):
    scratch = Scratch(tmp_path / "new" / "out")
    tensors = [(torch.arange(24).reshape(2, 3, 4) % 2).to(dtype) for dtype in DTYPES]
    held = [scratch.hold(tensor) for tensor in tensors]
    held[0][1, 2, 3] = 7.5
    scratch.rest()
    assert float(held[0][1, 2, 3]) == 7.5
    held[0][1, 2, 3] = tensors[0][1, 2, 3]
    for tensor, other in zip(tensors, held, strict=True):
        assert tensor.dtype == other.dtype
        assert torch.equal(tensor.float(), other.float())
        assert scratch.hold(other) is other, "what lives there is not copied"
    assert scratch.hold(torch.empty(0, 3)).shape == (0, 3)
    assert not list((tmp_path / "new").iterdir()), "the file has no name"


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
def test_rest_gives_memory_back_and_parts_rest_too(tmp_path):
    scratch = Scratch(tmp_path / "out")
    part = scratch.part()
    before = resident()
    held = [place.hold(torch.ones(1 << 23)) for place in (scratch, part)]
    gc.collect()
    assert resident() - before > 50_000_000
    scratch.rest()
    assert resident() - before < 10_000_000
    assert all(float(tensor.sum()) == 1 << 23 for tensor in held)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file/scratch.*choose an --out"):
        Scratch(tmp_path / "file" / "scratch" / "out").hold(torch.ones(2))


def test_ordinary_memory_changes_nothing():
    tensor = torch.ones(2)
    assert IN_MEMORY.hold(tensor) is tensor
    assert IN_MEMORY.part() is IN_MEMORY
    IN_MEMORY.rest()


@pytest.mark.parametrize("name", BUILDERS)
def test_a_model_opened_into_a_file_is_the_same(name, tmp_path):
    build(name).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    plain = open_model(str(tmp_path / "model"))
    mapped = open_model(str(tmp_path / "model"), memory=Scratch(tmp_path / "out"))
    assert mapped.fingerprint == plain.fingerprint
    assert mapped.hierarchy == plain.hierarchy
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(opened.model, kind)()) for opened in (mapped, plain))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    values = [parameter.data for parameter in mapped.model.parameters()]
    assert all(mapped.memory.hold(value) is value for value in values), "all of them live there"
    generation = [getattr(opened.model, "generation_config", None) for opened in (plain, mapped)]
    assert generation[0] == generation[1]
