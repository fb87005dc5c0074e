"""`gossamer generate`: what comes out, in which form the prompt goes in, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

CHAT = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}bot:"
SEEING_CHAT = (
    "{% for m in messages %}{% for part in m['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from gossamer.data.scenes import scene

    Image.fromarray(scene("test", 3, size=64).image).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def chatting(lm: Path, tmp_path: Path) -> Path:
    """The random model with a chat template."""
    folder = Path(shutil.copytree(lm, tmp_path / "chatting"))
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def copy_of(name: str, folder: Path) -> Path:
    from gossamer.models.embedded import embedded_model

    return Path(shutil.copytree(embedded_model(name), folder))


def test_the_text_comes_alone_and_its_speed_beside_it(gossamer) -> None:
    arguments = ("generate", "tiny-lm", "--prompt", "Once upon a time", "--max-tokens", "12")
    found = gossamer(*arguments, "--json")
    assert (found.code, found.err) == (0, "")
    told = found.json
    assert (told["prompt_tokens"], told["new_tokens"], told["finish_reason"]) == (6, 12, "length")
    assert len(told["tokens"]) == 12
    assert set(told["measured"]) == {"time_to_first_token_ms", "time_per_token_ms", "cache_bytes"}
    assert told["measured"]["time_per_token_ms"]["n"] == 11
    assert told["measured"]["time_to_first_token_ms"]["value"] > 0
    shown = gossamer(*arguments)
    assert (shown.code, shown.out) == (0, told["text"] + "\n")
    assert "6 tokens read, 12 written (ended by length)" in shown.err


def test_it_is_what_transformers_generates(gossamer, lm: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(lm)
    model = transformers.AutoModelForCausalLM.from_pretrained(lm)
    inputs = tokenizer("A dog and a cat", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    told = gossamer("generate", lm, "--prompt", "A dog and a cat", "--max-tokens", "10", "--json").json
    assert told["tokens"] == expected.tolist()
    assert told["text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_seeds_fix_what_is_drawn(gossamer, lm: Path) -> None:
    arguments = ("generate", lm, "--prompt", "a", "--temperature", "1.5", "--max-tokens", "8", "--json", "--seed")
    first, again, other = (gossamer(*arguments, seed).json for seed in "112")
    assert first["tokens"] == again["tokens"] != other["tokens"]
    assert first["sampling"]["temperature"] == 1.5
    assert (
        gossamer(*arguments, "1", "--top-k", "1").json["tokens"]
        == gossamer("generate", lm, "--prompt", "a", "--max-tokens", "8", "--json").json["tokens"]
    )


def test_it_stops_before_a_text(gossamer) -> None:
    arguments = ("generate", "tiny-lm", "--prompt", "Once upon a time", "--max-tokens", "40", "--json")
    text = gossamer(*arguments).json["text"]
    stop = text[9:15]
    told = gossamer(*arguments, "--stop", "no such text", "--stop", stop).json
    assert (told["text"], told["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_a_question_about_an_image_takes_the_models_own_prompt(gossamer, picture: Path, tmp_path: Path) -> None:
    question = "what color is the circle?"
    told = gossamer("generate", "tiny-vlm", "--prompt", question, "--image", picture, "--json").json
    assert told["finish_reason"] == "eos"
    raw = ("generate", "tiny-vlm", "--raw", "--prompt", f"<image> {question}", "--image", picture, "--json")
    assert gossamer(*raw).json["tokens"] == told["tokens"]
    assert told["prompt_tokens"] > 64
    chat = copy_of("tiny-vlm", tmp_path / "seeing")
    (chat / "gossamer.json").unlink()
    gossamer("generate", chat, "--prompt", question, "--image", picture).refused("no template", "--raw")
    (chat / "chat_template.jinja").write_text(SEEING_CHAT)
    assert (
        gossamer("generate", chat, "--prompt", question, "--image", picture, "--json").json["tokens"] == told["tokens"]
    )


def test_a_chat_template_is_used_unless_it_is_switched_off(gossamer, lm: Path, chatting: Path) -> None:
    arguments = ("--max-tokens", "6", "--json")
    told = gossamer("generate", chatting, "--prompt", "hi", *arguments).json
    written = gossamer("generate", lm, "--prompt", "<|endoftext|>user: hi\nbot:", *arguments).json
    assert (told["tokens"], told["prompt_tokens"]) == (written["tokens"], written["prompt_tokens"])
    raw = gossamer("generate", chatting, "--raw", "--prompt", "hi", *arguments).json
    assert raw["tokens"] == gossamer("generate", lm, "--prompt", "hi", *arguments).json["tokens"]
    assert raw["prompt_tokens"] < told["prompt_tokens"]
    (chatting / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    gossamer("generate", chatting, "--prompt", "hi").refused("chat template", "--raw")


def test_compressed_checkpoints_and_run_folders_write_too(gossamer, lm: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert gossamer("apply", "rtn-w8", lm, "--out", run / "checkpoint").code == 0
    (run / "gossamer-run.json").write_text(json.dumps({"gossamer_run": 1}))
    inside, outside = (
        gossamer("generate", place, "--prompt", "a cat", "--max-tokens", "5", "--json").json
        for place in (run, run / "checkpoint")
    )
    assert inside["tokens"] == outside["tokens"]
    assert inside["new_tokens"] == 5


def test_what_cannot_be_continued_is_refused(gossamer, lm: Path, picture: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        return gossamer("generate", *arguments).refused()

    assert "reads no images" in refused(lm, "--prompt", "a", "--image", picture)
    assert "nothing.png does not exist" in refused(lm, "--prompt", "a", "--image", tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("no image")
    assert "text.png is not an image" in refused("tiny-vlm", "--prompt", "a", "--image", tmp_path / "text.png")
    assert "2 images" in refused("tiny-vlm", "--prompt", "a", "--image", picture, "--image", picture)
    assert "context holds 256" in refused(lm, "--prompt", "cat " * 400)
    assert "no tokens" in refused(lm, "--prompt", "")
    assert "does not continue text" in refused("tiny-ovd", "--prompt", "a")
    assert "top_p nan" in refused(lm, "--prompt", "a", "--top-p", "nan")
    assert "temperature -1" in refused(lm, "--prompt", "a", "--temperature", "-1")
    assert "--max-tokens" in refused(lm, "--prompt", "a", "--max-tokens", "0")
    bare = Path(shutil.copytree(lm, tmp_path / "bare"))
    for file in bare.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer" in refused(bare, "--prompt", "a")


def test_less_is_kept_of_past_tokens(gossamer, lm: Path) -> None:
    arguments = ("generate", lm, "--prompt", "cat " * 100, "--max-tokens", "20", "--json")
    plain = gossamer(*arguments).json
    whole = gossamer(*arguments, "--kv", "h2o:budget=200").json
    assert whole["tokens"] == plain["tokens"]
    assert whole["kv"]["policy"] == {"name": "h2o", "heavy": 0.5}
    for kv, part in (("streaming:budget=40,block=8", 0.5), ("full:bits=4,residual=16", 0.4)):
        found = gossamer(*arguments, "--kv", kv).json
        assert found["measured"]["cache_bytes"]["value"] < part * whole["measured"]["cache_bytes"]["value"]
    longer = ("--prompt", "cat " * 400, "--kv", "streaming:budget=100,positions=rerotate")  # than the context of 256
    assert gossamer("generate", lm, *longer, "--max-tokens", "40", "--json").json["new_tokens"] == 40
    for kv, why in (("h3o", "full, h2o"), ("streaming:budget=2", "always keeps the first 4"), ("h2o:a=1", "'a'")):
        gossamer("generate", lm, "--prompt", "a", "--kv", kv).refused(why)


def test_a_plan_beside_the_weights_says_how_to_write(gossamer, lm: Path, tmp_path: Path) -> None:
    """It holds for what `apply` wrote and is asked no more where the command line says otherwise."""
    import yaml

    made = gossamer("apply", "rtn-w8", lm, "--out", tmp_path / "small", "--json")
    plan = yaml.safe_load((tmp_path / "small" / "plan.yaml").read_text())

    def operate(**operation) -> None:
        (tmp_path / "small" / "plan.yaml").write_text(yaml.safe_dump({**plan, "operation": operation}))

    arguments = ("generate", tmp_path / "small", "--prompt", "cat " * 100, "--max-tokens", "20", "--json")
    assert made.code == 0
    assert "kv" not in gossamer(*arguments).json
    operate(kv_cache={"do": "streaming", "budget": 40}, speculation={"do": "prompt_lookup", "tokens": 3})
    planned = gossamer(*arguments).json
    assert (planned["kv"]["policy"]["name"], planned["kv"]["budget"]) == ("streaming", 40)
    assert (planned["speculation"]["drafter"], planned["speculation"]["draft_tokens"]) == ("lookup", "3")
    told = gossamer(*arguments, "--kv", "h2o:budget=200", "--speculate", "none").json
    assert told["kv"]["policy"]["name"] == "h2o"
    assert "speculation" not in told
    assert "kv" not in gossamer(*arguments, "--kv", "none").json
    gossamer(*arguments, "--engine", "native").refused("native engine keeps all", "--kv none")
    operate(kv_cache={"do": "h3o"})
    gossamer(*arguments).refused("operation.kv_cache 'h3o'", "full, h2o")
    gossamer("apply", tmp_path / "small" / "plan.yaml", lm, "--out", tmp_path / "other").refused("'h3o'")
    assert not (tmp_path / "other").exists()
    operate(visual_tokens={"do": "visionzip"})
    gossamer(*arguments).refused("plan.yaml", "field operation: visual_tokens is not known; give runtime, kv_cache")


def test_text_appears_before_the_end(lm: Path) -> None:
    """A reader that goes away after the first characters ends the command quietly."""
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "gossamer", "generate", str(lm), "--prompt", "a", "--max-tokens", "240"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert os.read(running.stdout.fileno(), 1)
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) == 141
