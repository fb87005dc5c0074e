"""`gossamer generate --speculate`: the same text, what is told of the drafts, and what is refused."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

PROMPT = ("generate", "tiny-lm", "--prompt", "Once upon a time", "--max-tokens", "30")


@pytest.mark.parametrize("drafter", ["lookup", "self:2", "tiny-lm-draft"])
def test_the_text_stays_and_the_drafts_are_counted(gossamer, drafter: str) -> None:
    plain = gossamer(*PROMPT, "--json").json
    found = gossamer(*PROMPT, "--speculate", drafter, "--draft-tokens", "3", "--json")
    assert (found.code, found.err) == (0, "")
    told = found.json
    assert (told["tokens"], told["text"]) == (plain["tokens"], plain["text"])
    assert set(told["measured"]) == {*plain["measured"], "acceptance"}
    assert told["measured"]["time_per_token_ms"]["n"] == 29
    said = told["speculation"]
    assert (said["drafter"], said["draft_tokens"], said["drafts"], said["rule"]) == (drafter, "3", 1, "kseq")
    assert said["passes"] + said["accepted"] == 29
    assert said["tokens_per_pass"] == 29 / said["passes"]
    assert told["measured"]["acceptance"]["n"] == said["judged"] == said["accepted"] + said["recovered"]
    assert told["measured"]["acceptance"]["value"] == said["accepted"] / said["judged"]
    assert said["lossless"] is True
    assert "speculation" not in plain
    shown = gossamer(*PROMPT, "--speculate", drafter, "--draft-tokens", "3")
    assert shown.out == plain["text"] + "\n"
    assert f"{said['accepted']} tokens were drafted ones, of {said['drafted']} in {said['passes']} passes" in shown.err


def test_several_drafts_and_their_rules(gossamer) -> None:
    arguments = (*PROMPT, "--temperature", "0.9", "--speculate", "tiny-lm-draft", "--draft-tokens", "3", "--json")
    kseq, again, recursive = (
        gossamer(*arguments, "--drafts", "3", "--rule", rule).json for rule in ("kseq", "kseq", "recursive")
    )
    assert kseq["tokens"] == again["tokens"]
    assert len(recursive["tokens"]) == 30
    assert kseq["speculation"]["drafted"] > 3 * kseq["speculation"]["judged"] / 3
    assert recursive["speculation"]["rule"] == "recursive"


@pytest.mark.parametrize("drafter", ["tiny-vlm-small", "lookup", "self:1"])
def test_an_answer_about_an_image(gossamer, drafter: str, tmp_path: Path) -> None:
    from gossamer.data.scenes import scene

    Image.fromarray(scene("test", 3, size=64).image).save(tmp_path / "scene.png")
    question = ("generate", "tiny-vlm", "--prompt", "what color is the circle?", "--image", tmp_path / "scene.png")
    plain = gossamer(*question, "--json").json
    for length in ("3", "auto"):
        told = gossamer(*question, "--speculate", drafter, "--draft-tokens", length, "--json").json
        assert told["tokens"] == plain["tokens"]
        if (length, drafter) == ("3", "tiny-vlm-small"):
            assert told["speculation"]["accepted"] > 0


def test_a_text_only_draft_for_a_model_that_sees(gossamer, tmp_path: Path) -> None:
    import transformers

    from gossamer.data.scenes import scene
    from gossamer.models.embedded import embedded_model

    Image.fromarray(scene("test", 3, size=64).image).save(tmp_path / "scene.png")
    vlm = embedded_model("tiny-vlm")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=70, **small)).save_pretrained(tmp_path / "draft")
    for file in vlm.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "draft")
    question = ("generate", "tiny-vlm", "--prompt", "what color is the circle?", "--image", tmp_path / "scene.png")
    told = gossamer(*question, "--speculate", tmp_path / "draft", "--draft-tokens", "2", "--json").json
    assert told["tokens"] == gossamer(*question, "--json").json["tokens"]
    assert told["speculation"]["drafted"] > 0


@pytest.mark.parametrize("kv", ["h2o:budget=200", "full:bits=8", "streaming:budget=24,block=8,positions=rerotate"])
def test_drafts_with_a_cache_that_keeps_less(gossamer, kv: str) -> None:
    plain = gossamer(*PROMPT, "--kv", kv, "--json").json
    told = gossamer(*PROMPT, "--kv", kv, "--speculate", "tiny-lm-draft", "--draft-tokens", "3", "--json").json
    assert told["speculation"]["lossless"] is False
    assert told["new_tokens"] == 30
    assert told["speculation"]["accepted"] > 5
    if "budget=200" in kv:  # nothing is evicted
        assert told["tokens"] == plain["tokens"]


def test_what_cannot_draft_is_refused(gossamer) -> None:
    def refused(*arguments: str) -> str:
        return gossamer(*PROMPT, "--speculate", *arguments).refused()

    assert "another tokenizer than tiny-lm" in refused("tiny-vlm-small")
    assert "tiny-ovd does not continue text" in refused("tiny-ovd")
    assert "model nothing does not exist" in refused("nothing")
    assert "write self:N" in refused("self:")
    assert "self:6 is not possible: the model has 6, give 1 to 5" in refused("self:6")
    assert "'many' drafted tokens" in refused("lookup", "--draft-tokens", "many")
    assert "0 drafted tokens" in refused("lookup", "--draft-tokens", "0")
    assert "always drafts the same" in refused("lookup", "--drafts", "2")
    assert "temperature above 0" in refused("self:2", "--drafts", "2")
    assert "0 drafts" in refused("self:2", "--drafts", "0")
    assert "give --kv none" in refused("self:2", "--drafts", "2", "--temperature", "1", "--kv", "h2o")
    assert "--rule" in refused("self:2", "--rule", "best")
