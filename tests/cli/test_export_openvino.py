"""`gossamer export --format openvino` through the command line, on random models: plumbing only."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import left_behind

export = ("--format", "openvino", "--out")


def test_without_the_package_the_extra_is_named(
    lm: Path, gossamer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    gossamer("export", lm, *export, tmp_path / "out").refused("pip install 'gossamer[openvino]'")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, lm: Path) -> Path:
    """The random Llama without its first block, and with 4-bit weights in groups, as `gossamer apply` writes it."""
    pytest.importorskip("openvino", reason="the optional package openvino is not installed")
    from gossamer.models.open import open_model
    from gossamer.search.jobs import apply_job

    opened = open_model(str(lm))
    plan = tmp_path_factory.mktemp("plan") / "plan.yaml"
    plan.write_text(
        f"gossamer_plan: 1\nmodel: {{family: llama, fingerprint: '{opened.fingerprint}'}}\nbudget: {{}}\ncompression:\n"
        '  - {at: "language.blocks.0", do: drop_block}\n'
        '  - {at: "language.**", do: rtn, bits: 4, group: 32}\n'
    )
    out = tmp_path_factory.mktemp("applied") / "small"
    apply_job(str(plan), str(lm), out)
    return out


def test_a_checkpoint_with_a_dropped_block_becomes_a_graph_with_its_codes(
    small: Path, gossamer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small, run / "checkpoint")
    (run / "gossamer-run.json").write_text("{}")
    (run / "result.json").write_text(json.dumps({"checkpoint": "checkpoint"}))
    ended = gossamer("export", run, *export, tmp_path / "out", "--json")
    assert (ended.code, ended.err) == (0, "")
    result = ended.json
    assert (result["types"]["i4"], result["types"]["f16"]) == (7, 8)  # one block, and their scales with the table
    assert result["parity"] < 1e-4
    assert result["notes"] == []
    measured = {key: value["value"] for key, value in result["measured"].items()}
    assert measured["logit_difference"] < 1e-4
    assert 0 <= measured["kl"] < 1e-6
    assert measured["kl"] <= measured["default_kl"] < 1e-3
    assert measured["weight_bytes"] == (tmp_path / "out" / "openvino_model.bin").stat().st_size
    files = left_behind(tmp_path / "out")
    assert {"config.json", "openvino_model.bin", "openvino_model.xml", "tokenizer.json"} <= set(files)
    again = gossamer("export", small, *export, tmp_path / "out")
    assert again.code == 0, again.err
    for word in ("weights", "default KL, nats", "parity: ", "7 i4", f"folder: {tmp_path / 'out'}"):
        assert word in again.out


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    small: Path, gossamer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Path(shutil.copytree(small, tmp_path / "beside"))
    (beside / "adapter").mkdir()
    gossamer("export", beside, *export, tmp_path / "out").refused("OpenVINO export takes no adapters")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("")
    gossamer("export", small, *export, taken).refused("holds something else already")
    from gossamer.models import openvino_constants

    packed = openvino_constants._container
    monkeypatch.setattr(openvino_constants, "_container", lambda *found: ("u4", packed(*found)[1]))
    ended = gossamer("export", small, *export, tmp_path / "out")
    assert ended.code == 1
    assert "export parity failed: outputs differ by" in ended.err
    assert not (tmp_path / "out").exists()
