"""Integer models on disk, bit for bit; from the command line; and what is wrong with them said in one sentence."""

import json
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from tests.accelerator.quantize.test_families_integer import quantized

from gossamer.accelerator.integer_files import load_integer, save_integer
from gossamer.cli.main import run
from gossamer.core.errors import ModelError, OutputError
from gossamer.models.embedded import embedded_model
from gossamer.models.open import open_model


def same(a, b) -> bool:
    """Equal in every field, type and bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("name", ["llava", "bert", "deit"])
def test_saved_and_loaded_bit_for_bit(name: str, tmp_path) -> None:
    made, examples = quantized(name)
    save_integer(made.integer, tmp_path / "out")
    loaded = load_integer(tmp_path / "out")
    assert same(loaded, made.integer)
    assert np.array_equal(loaded.run(examples[0], 4), made.integer.run(examples[0], 4))
    save_integer(loaded, tmp_path / "again")
    for file in ("integer.json", "model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_equal_arrays_are_stored_once(tmp_path) -> None:
    made, _ = quantized("llama")
    save_integer(made.integer, tmp_path / "out")
    blocks = load_integer(tmp_path / "out").stacks["language"].blocks
    assert blocks[0].attention.rotary is blocks[1].attention.rotary


def test_faults_are_said(tmp_path) -> None:
    with pytest.raises(ModelError, match="no integer model"):
        load_integer(tmp_path)
    made, _ = quantized("llama")
    out = tmp_path / "out"
    save_integer(made.integer, out)
    described = json.loads((out / "integer.json").read_text())
    (out / "integer.json").write_text(json.dumps({**described, "format": "gossamer-integer-0"}))
    with pytest.raises(ModelError, match="format gossamer-integer-1"):
        load_integer(out)
    described["model"]["stacks"]["map"]["language"]["table"] = {"tensor": "nowhere"}
    (out / "integer.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="nowhere"):
        load_integer(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="holds something else"):
        save_integer(made.integer, tmp_path / "other")


def test_the_command_line_quantises_tiny_lm(tmp_path, capsys) -> None:
    out = tmp_path / "lm"
    arguments = [
        "accelerator",
        "quantize",
        "tiny-lm",
        "--data",
        "heldout",
        "--examples",
        "2",
        "--out",
        str(out),
        "--json",
    ]
    assert run([*arguments, "--positions", "256"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["logit_error"] < 0.06
    assert 0 < said["saturated"] < 1e-3
    assert said["notes"] == []
    model = load_integer(out)
    assert model.fingerprint == said["fingerprint"] == open_model("tiny-lm").fingerprint
    tokens = torch.arange(40, 90)
    with torch.inference_mode():
        wanted = open_model("tiny-lm").model(input_ids=tokens[None]).logits[0]
    found = torch.from_numpy(model.run({"input_ids": tokens}, 8)) * model.scale
    assert float((found - wanted).norm() / wanted.norm()) < 0.08
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() > 0.8


def test_a_stream_that_integers_do_not_hold_is_said(tmp_path, capsys) -> None:
    """One channel is ten thousand times as large as the others, which alone decide on the logits."""
    from transformers import AutoTokenizer

    opened = open_model("tiny-lm")
    model = opened.model
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 3e4
        model.lm_head.weight[:, 0] = 0
    model.save_pretrained(tmp_path / "massive")
    AutoTokenizer.from_pretrained(embedded_model("tiny-lm")).save_pretrained(tmp_path / "massive")
    arguments = ["accelerator", "quantize", str(tmp_path / "massive"), "--task", "text", "--data", "heldout"]
    assert run([*arguments, "--examples", "2", "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["logit_error"] > 0.5
    assert "gossamer apply rotate" in said["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny-lm", "--data", "heldout", "--weights", "5"], "weights of 5 bits"),
        (["tiny-lm", "--data", "heldout", "--weights", "4", "--group", "48"], "group 48"),
        (["tiny-lm", "--data", "nowhere.txt"], "nowhere.txt"),
        (["tiny-lm", "--data", "heldout", "--positions", "1000"], "1000 positions"),
        (["tiny-ovd", "--task", "detection", "--data", "scenes"], "Owlv2ForObjectDetection"),
    ],
)
def test_bad_requests_end_in_one_sentence(arguments: list[str], said: str, tmp_path, capsys) -> None:
    assert run(["accelerator", "quantize", *arguments, "--examples", "1", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not (tmp_path / "x").exists()


def test_a_changed_model_gives_other_integers() -> None:
    assert embedded_model("tiny-lm") is not None
    made, examples = quantized("llama")
    stack = made.integer.stacks["language"]
    louder = replace(stack, head=replace(stack.head, bias=stack.head.bias + 100000))
    changed = replace(made.integer, stacks={"language": louder})
    assert not np.array_equal(changed.run(examples[0], 8), made.integer.run(examples[0], 8))
