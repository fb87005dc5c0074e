"""Compression and search away from the processor: on a device that is only pretended, and on a GPU if there is one."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from gossamer.core.errors import DeviceError
from gossamer.engine.forward import named_device
from gossamer.models.checkpoint import reload
from gossamer.search.jobs import apply_job
from gossamer.search.optimize import optimize
from gossamer.search.request import SIZES, OptimizeRequest, Sizes

if torch.cuda.is_available():  # gradients on a GPU do not go together with another registered device
    PLACES = {"cuda": nullcontext}
else:
    from pretended import NAME, Pretending

    PLACES = {NAME: Pretending}
PRESETS = (
    "rtn-w4g32a",
    "hqq-w3g32",
    "gptaq-w3g32+correction-r2",
    pytest.param("signround-w4g32", marks=pytest.mark.slow),  # at 3 bits 0.6 of this model's variance is lost: chaos
    "awq-w4g32",
    pytest.param("omniquant-w3g32", marks=pytest.mark.slow),
    "rotate+gptq-nvfp4",
    pytest.param("spinquant+rtn-w3g32", marks=pytest.mark.slow),
    pytest.param("learned_scales+rtn-w3g32", marks=pytest.mark.slow),
    "smoothquant+qronos-w8a8s",
    "ria-2:4+gptq-w4g32",
    "obr-50+gptq-w4g32",
    pytest.param("losparse-r2+rtn-w4g32+heal", marks=pytest.mark.slow),
    "prune_heads-50+gptq-w4",
    "low_rank-r8",
    "permute+ria-2:4",
    pytest.param("prune_heads-50-learned", marks=pytest.mark.slow),
    pytest.param("rtn-w3g32+heal-on_policy", marks=pytest.mark.slow),
)


def logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return reload(directory)(torch.arange(2, 40)[None]).logits


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_carried_out_elsewhere(place: str, preset: str, model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("gossamer.search.jobs.PRESET_SAMPLES", 20)
    here = apply_job(preset, str(model), tmp_path / "here")
    with PLACES[place]():
        there = apply_job(preset, str(model), tmp_path / "there", on=place)
    assert there["parity"] <= 1e-3
    assert there["measured"] == here["measured"]
    assert len(there["notes"]) == len(here["notes"])
    one, other = logits(tmp_path / "here"), logits(tmp_path / "there")
    assert one.shape == other.shape
    assert float((one - other).square().mean()) < 0.1 * float(one.var())  # sums are rounded in another order there


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_search_is_carried_out_elsewhere(place: str, model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(SIZES["text"], "quick", Sizes(4, 2, 2, 2, 2, 2, 1, 2))
    text = tmp_path / "text.txt"
    text.write_text("the sea ship wind old man saw north went of " * 300)
    request = OptimizeRequest(
        str(model), tmp_path / "run", task="text", data=str(text), ratio=0.65, effort="quick", on=place
    )
    with PLACES[place]():
        result = optimize(request)
    assert result["parity"] <= 1e-3
    assert result["measured"]["weight_bytes"]["value"] <= result["budget"]["weight_bytes"]


def test_a_device_that_is_not_there_is_refused() -> None:
    assert named_device("cpu") == torch.device("cpu")
    for name in ("cuda:63", "gpu", "meta", ""):
        with pytest.raises(DeviceError, match=r"this machine has cpu"):
            named_device(name)
