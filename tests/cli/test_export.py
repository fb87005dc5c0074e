"""`gossamer export --format gguf` through the command line, on random models: plumbing only."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import left_behind, make_lm


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, lm: Path) -> Path:
    """The random Llama with 4-bit weights in groups, as `gossamer apply` writes it."""
    from gossamer.search.jobs import apply_job

    out = tmp_path_factory.mktemp("applied") / "small"
    apply_job("rtn-w4g32", str(lm), out)
    return out


def test_a_compressed_checkpoint_becomes_one_file_with_its_codes(small: Path, gossamer, tmp_path: Path) -> None:
    ended = gossamer("export", small, "--format", "gguf", "--out", tmp_path / "small.gguf", "--json")
    assert (ended.code, ended.err) == (0, "")
    result = ended.json
    assert result["types"] == {"F16": 1, "Q4_0": 14, "F32": 5}
    assert result["parity"] == 0
    assert result["measured"]["logit_difference"]["value"] == 0
    assert result["notes"] == []
    seen = gossamer("inspect", tmp_path / "small.gguf", "--json").json
    assert seen["weight_bytes"] == result["measured"]["weight_bytes"]["value"]
    assert (tmp_path / "small.gguf").stat().st_size == result["measured"]["file_bytes"]["value"]
    compared = gossamer("compare", small, tmp_path / "small.gguf", "--limit", "2", "--json")
    assert compared.code == 0, compared.err
    assert compared.json["difference"]["perplexity"]["value"] == pytest.approx(0, abs=1e-3)
    assert left_behind(tmp_path) == ["small.gguf"]


def test_the_file_and_its_figures_are_printed(small: Path, gossamer, tmp_path: Path) -> None:
    ended = gossamer("export", small, "--format", "gguf", "--out", tmp_path / "small.gguf")
    assert (ended.code, ended.err) == (0, "")
    for word in ("weights", "logit difference", "parity: 0", "14 Q4_0", str(tmp_path / "small.gguf")):
        assert word in ended.out


def test_the_same_checkpoint_gives_the_same_bytes(small: Path, gossamer, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        assert gossamer("export", small, "--format", "gguf", "--out", tmp_path / name).code == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_dense_model_and_a_gguf_file_can_be_exported_too(lm: Path, gossamer, tmp_path: Path) -> None:
    first = gossamer("export", lm, "--format", "gguf", "--out", tmp_path / "dense.gguf", "--json")
    assert first.code == 0, first.err
    assert first.json["notes"] == ["model.embed_tokens.weight and 14 more: rounded to 16 bits."]
    assert 0 < first.json["measured"]["logit_difference"]["value"] < 1e-2
    again = gossamer("export", tmp_path / "dense.gguf", "--format", "gguf", "--out", tmp_path / "again.gguf", "--json")
    assert again.json["measured"]["logit_difference"]["value"] == 0
    assert again.json["notes"] == []


def test_a_finished_run_is_exported_by_its_checkpoint(small: Path, gossamer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small, run / "checkpoint")
    (run / "gossamer-run.json").write_text("{}")
    ended = gossamer("export", run, "--format", "gguf", "--out", tmp_path / "small.gguf")
    ended.refused("holds no finished run")
    (run / "result.json").write_text(json.dumps({"checkpoint": "checkpoint"}))
    ended = gossamer("export", run, "--format", "gguf", "--out", tmp_path / "small.gguf", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["types"]["Q4_0"] == 14


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(small: Path, gossamer, tmp_path: Path) -> None:
    out = tmp_path / "out" / "model.gguf"
    export = ("--format", "gguf", "--out")
    gossamer("export", small, *export, tmp_path / "folder").refused("a GGUF file's name ends in .gguf")
    gossamer("export", "tiny-vlm", *export, out).refused("type llava", "takes llama, mistral, qwen2, qwen3")
    mute = Path(shutil.copytree(small, tmp_path / "mute"))
    for file in mute.glob("tokenizer*"):
        file.unlink()
    gossamer("export", mute, *export, out).refused(str(mute), "no tokenizer")
    beside = Path(shutil.copytree(small, tmp_path / "beside"))
    (beside / "adapter").mkdir()
    gossamer("export", beside, *export, out).refused("low-rank matrices beside it")
    gossamer("export", tmp_path / "none", *export, out).refused("does not exist")
    assert not out.exists()
    assert left_behind(tmp_path / "out") == []


def test_a_file_that_reads_back_differently_is_not_kept(
    small: Path, gossamer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of queries in the wrong order, as a writer that forgot GGUF's order would leave them."""
    from gossamer.models import gguf_write

    out = tmp_path / "model.gguf"
    out.write_bytes(b"an earlier one")
    monkeypatch.setattr(gguf_write, "_ordered", lambda encoded, name, config: encoded.data)
    ended = gossamer("export", small, "--format", "gguf", "--out", out)
    assert ended.code == 1
    assert "export parity failed: logits differ by" in ended.err
    assert left_behind(tmp_path) == ["model.gguf"]
    assert out.read_bytes() == b"an earlier one"


def test_an_embedding_may_have_more_rows_than_the_tokenizer_has_tokens(gossamer, tmp_path: Path) -> None:
    from gossamer.models.gguf import gguf_config

    wide = make_lm(tmp_path / "wide", vocabulary=2100)
    ended = gossamer("export", wide, "--format", "gguf", "--out", tmp_path / "wide.gguf", "--json")
    assert ended.code == 0, ended.err
    assert gguf_config(tmp_path / "wide.gguf").vocab_size == 2100
