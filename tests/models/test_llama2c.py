"""llama2.c files: exact weights, the same logits as its C code, and its own encoding of text."""

import os
import random
import struct
from pathlib import Path

import llama2c_files as files
import numpy as np
import pytest
import torch

from gossamer.core.errors import DataError, ModelError
from gossamer.models import llama2c
from gossamer.models.open import open_model

DATA = Path(os.environ.get("GOSSAMER_DATA", "")) / "stories260K"
needs_data = pytest.mark.skipif(
    not os.environ.get("GOSSAMER_DATA") or not DATA.is_dir(), reason="GOSSAMER_DATA does not hold stories260K"
)
TOKENS = [1, 260, 7, 45, 299, 128, 3, 260, 9]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_logits_equal_those_of_the_c_code(version: int, shared: bool, tmp_path: Path) -> None:
    arrays, path = files.weights(), tmp_path / "model.bin"
    write = (files.write_v0, files.write_v1, files.write_v2)[version]
    arrays = write(path, arrays, shared) or arrays
    opened = open_model(str(path))
    assert opened.hierarchy.family == "llama"
    assert opened.hierarchy.parameters == sum(a.size for name, a in arrays.items() if name != "head" or not shared)
    with torch.no_grad():
        ours = opened.model(torch.tensor([TOKENS])).logits[0].numpy()
    theirs = files.logits(arrays, TOKENS, shared)
    assert np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max() + 1e-6
    assert np.array_equal(opened.model.get_parameter("model.embed_tokens.weight").numpy(), arrays["embed"])
    assert np.array_equal(opened.model.get_parameter("model.layers.1.mlp.down_proj.weight").numpy(), arrays["w2"][1])
    bare = open_model(str(path), weights=False)
    assert bare.hierarchy == opened.hierarchy
    assert bare.stored_bytes == opened.stored_bytes <= path.stat().st_size - 28


def test_a_saved_copy_gives_the_same_outputs(tmp_path: Path) -> None:
    files.write_v0(tmp_path / "model.bin", files.weights(), True)
    opened = open_model(str(tmp_path / "model.bin"))
    opened.model.save_pretrained(tmp_path / "copy")
    again = open_model(str(tmp_path / "copy"))
    inputs = torch.tensor([TOKENS])
    with torch.no_grad():
        assert torch.equal(again.model(inputs).logits, opened.model(inputs).logits)


def test_the_tokenizer_encodes_as_the_c_code_does(tmp_path: Path) -> None:
    files.write_v0(tmp_path / "model.bin", files.weights(), True)
    files.write_tokenizer(tmp_path / f"tok{files.VOCABULARY}.bin")
    tokenizer = open_model(str(tmp_path / "model.bin")).tokenizer
    entries = files.vocabulary()
    texts = ["abc", "", "aaaa aab", "  ab  cd", "é日", "\n\tabcd", "<s>", "a</s>b", "<0x41>", "\U0001f980 abc"]
    source = random.Random(0)
    texts += ["".join(source.choice("aab cd é\n日") for _ in range(source.randrange(40))) for _ in range(300)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == files.encode(text, entries), text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_model_without_tokenizer_file_opens(tmp_path: Path) -> None:
    files.write_v0(tmp_path / "model.bin", files.weights(), True)
    assert open_model(str(tmp_path / "model.bin")).tokenizer is None


def test_a_directory_with_one_checkpoint_is_a_model(tmp_path: Path) -> None:
    files.write_v0(tmp_path / "model.bin", files.weights(), True)
    files.write_tokenizer(tmp_path / "tokenizer.bin")
    assert open_model(str(tmp_path)).tokenizer is not None


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    files.write_v2(path, files.weights(), True)
    content = path.read_bytes()
    for damaged, said in [
        (content[:-1], "is damaged: it has"),
        (content + b"\0", "is damaged: it has"),
        (content[:20], "is not a llama2.c file"),
        (b"PK\3\4" * 100, "is not a llama2.c checkpoint"),
        (content[:4] + struct.pack("<i", 9) + content[8:], "of version 9"),
        (content[:8] + struct.pack("<i", -3) + content[12:], "its header makes no sense"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=said) as caught:
            open_model(str(path))
        assert str(path) in str(caught.value)


def test_a_tokenizer_of_another_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    files.write_tokenizer(path)
    with pytest.raises(DataError, match="holds 300 tokens, the model has 512"):
        llama2c.build_tokenizer(path, 512)


@needs_data
@pytest.mark.parametrize("name", ["stories260K.bin", "stories260K-q8.bin"])
def test_the_real_model_reads_stories(name: str) -> None:
    import zipfile

    opened = open_model(str(DATA / name))
    assert opened.hierarchy.parameters == 260_032
    with zipfile.ZipFile(DATA.parent / "tinystories.zip") as archive:
        text = archive.read("v2_train_head.txt").decode()
    stories = [story.strip() for story in text[int(len(text) * 0.9) :].split("<|endoftext|>")][1:25]
    total, count = 0.0, 0
    for story in stories:
        ids = opened.tokenizer(story, return_tensors="pt").input_ids[:, :256]
        loss = float(opened.model(ids, labels=ids).loss)
        total, count = total + loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    # Upstream states 1.297 on its validation split. How the figure depends on the protocol: test_text_task.py.
    assert total / count == pytest.approx(1.364, abs=0.01)
    start = opened.tokenizer("Once upon a time", return_tensors="pt").input_ids
    story = opened.tokenizer.decode(opened.model.generate(start, max_new_tokens=20, do_sample=False)[0])
    assert "there was a little girl" in story


@needs_data
def test_the_real_tokenizer_encodes_as_the_c_code_does() -> None:
    import zipfile

    entries = llama2c.read_vocabulary(DATA / "tok512.bin", 512)
    tokenizer = llama2c.build_tokenizer(DATA / "tok512.bin", 512)
    with zipfile.ZipFile(DATA.parent / "tinystories.zip") as archive:
        stories = archive.read("v2_train_head.txt").decode()[-30_000:].split("<|endoftext|>")
    source = random.Random(1)
    noise = ["".join(chr(source.randrange(1, 0x2FF)) for _ in range(60)) for _ in range(40)]
    for text in (*stories[:12], *noise):
        assert tokenizer(text)["input_ids"] == files.encode(text, entries)
