"""Leaving early: whose law each token follows, what the whole model has read, and what calibration shows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.test_decode import WRITERS, generated, lively, prompts_for, written

from gossamer.core.errors import DataError, ModelError, SettingError
from gossamer.engine.decode import Request
from gossamer.engine.sampling import Sampling
from gossamer.evaluate.text import TextTask, Window
from gossamer.models.embedded import embedded_model
from gossamer.models.open import open_model
from gossamer.operate.early_exit.calibrate import calibrate, fewest, p_value
from gossamer.operate.early_exit.decode import WAITING, EarlyExit, Left, margins
from gossamer.operate.early_exit.wish import ExitWish
from gossamer.operate.generate import generate
from gossamer.operate.speculate.self_draft import first_blocks
from gossamer.operate.writer import open_writer

NEW = 12
PROMPT = {"input_ids": torch.tensor([[1, 5, 71, 33, 8]])}


def left_by(leave: EarlyExit, model, request: Request, stepper_of=None) -> tuple[list[int], Left]:
    """The tokens that come, and what is counted."""
    left = Left()
    more = {} if stepper_of is None else {"stepper_of": stepper_of}
    return [event.token for event in leave.decode(model, request, None, left, **more)], left


def idle_from(block: int, layers: int = 4):
    """A random model whose blocks from this one on add nothing."""
    model = lively_llama(layers)
    for layer in model.model.layers[block:]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    return model


def lively_llama(layers: int = 4):
    import transformers

    torch.manual_seed(3)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 128}
    config = transformers.LlamaConfig(vocab_size=96, num_hidden_layers=layers, tie_word_embeddings=False, **small)
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(12)
    return model


@pytest.mark.parametrize("name", WRITERS)
def test_never_sure_is_plain_decoding(name: str) -> None:
    model = lively(name)
    for prompt in prompts_for(name, model):
        tokens, left = left_by(EarlyExit(1, 1.0), model, Request(prompt, max_new_tokens=6))
        assert tokens == generated(model, prompt, max_new_tokens=6)
        assert (left.early, left.passes) == (0, len(tokens) - 1)


@pytest.mark.parametrize("name", ["llama", "gemma3", "llava", "qwen2_vl", "mixtral"])
def test_always_sure_is_the_first_blocks_after_the_first_token(name: str) -> None:
    model = lively(name)
    prompt = prompts_for(name, model)[0]
    tokens, left = left_by(EarlyExit(1, 0.0), model, Request(prompt, max_new_tokens=6, eos=frozenset()))
    assert (left.early, left.passes) == (5, 0)
    begun = {**prompt, "input_ids": torch.cat([prompt["input_ids"], torch.tensor([tokens[:1]])], 1)}
    for key in ("attention_mask", "mm_token_type_ids"):
        if key in begun:
            begun[key] = torch.nn.functional.pad(begun[key], (0, 1), value=int(key == "attention_mask"))
    request = Request(begun, max_new_tokens=5, eos=frozenset())
    assert written(first_blocks(model, 1), [request])[0] == tokens[1:]
    assert written(model, [request])[0] != tokens[1:]


@settings(max_examples=25)
@given(threshold=st.floats(0, 0.9), blocks=st.integers(1, 3), new=st.integers(2, 60))
def test_every_token_is_the_likeliest_of_the_text_before_it_by_whoever_was_to_say(threshold, blocks, new) -> None:
    """What the whole model says depends on the text alone, however many of its tokens it read late."""
    model = lively_llama()
    shorter = first_blocks(model, blocks)
    request = Request(PROMPT, max_new_tokens=new, eos=frozenset())
    tokens, left = left_by(EarlyExit(blocks, threshold), model, request)
    text = torch.tensor([[*PROMPT["input_ids"][0].tolist(), *tokens]])
    with torch.inference_mode():
        whole, first = (each(text).logits[0, PROMPT["input_ids"].shape[1] - 1 : -1] for each in (model, shorter))
    sure, waiting, early = margins(first), 0, 0
    for at, token in enumerate(tokens):
        waiting += at > 0
        leaves = at > 0 and waiting < WAITING and float(sure[at]) >= threshold
        if abs(float(sure[at]) - threshold) < 1e-5 and at:  # rounding decides: the rest is another text's
            return
        assert token == int((first if leaves else whole)[at].argmax())
        early += leaves
        waiting = waiting if leaves else 0
    assert (left.early, left.passes) == (early, len(tokens) - 1 - early)
    assert waiting < WAITING


def test_drawn_tokens_and_ends() -> None:
    model = lively_llama()
    drawn = [left_by(EarlyExit(2, 0.2), model, Request(PROMPT, Sampling(1.0, seed=seed), NEW))[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    first = written(model, [Request(PROMPT, max_new_tokens=1)])[0][0]
    tokens, left = left_by(EarlyExit(2, 0.0), model, Request(PROMPT, max_new_tokens=NEW, eos=frozenset([first])))
    assert (tokens, left) == ([first], Left())


def test_the_native_engine_leaves_alike() -> None:
    writer, plain = open_writer("tiny-lm", "native"), open_model("tiny-lm")
    prompt = {"input_ids": plain.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]}
    request = Request(prompt, max_new_tokens=40)
    native = left_by(EarlyExit(2, 0.5), writer.opened.model, request, writer.stepper_of)
    assert native == left_by(EarlyExit(2, 0.5), plain.model, request)
    assert 0 < native[1].early < 39


# --------------------------------------------------------------------------------------------------- calibration


def windows(count: int, seed: int = 0) -> TextTask:
    """Random texts."""
    drawn = torch.randint(3, 96, (count, 12), generator=torch.Generator().manual_seed(seed)).tolist()
    return TextTask(tuple(Window(tuple(ids), 11) for ids in drawn), {})


def test_blocks_that_do_nothing_are_found_and_left_out() -> None:
    found = calibrate(idle_from(2), windows(2 * fewest(0.02)), 0.02)
    assert found.way == EarlyExit(2, 0.0)
    assert (found.early, found.differ, found.pays) == (1.0, 0.0, True)
    assert found.cost == pytest.approx(0.5)


def test_what_it_shows_holds_on_unseen_texts() -> None:
    """The later half adds little: some likeliest tokens change."""
    model = idle_from(2)
    for layer in model.model.layers[2:]:
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.05)
    found = calibrate(model, windows(400), 0.05)
    assert found.way is not None
    assert 0 < found.differ < 0.05
    assert found.early > 0.3
    with torch.inference_mode():
        ids = torch.tensor([window.ids for window in windows(600, seed=1).windows])
        whole, first = (each(ids).logits[:, :-1] for each in (model, first_blocks(model, found.way.blocks)))
    leaves = margins(first) >= found.way.threshold
    assert float((leaves & (first.argmax(-1) != whole.argmax(-1))).float().mean()) < 0.05
    assert float(leaves.float().mean()) == pytest.approx(found.early, abs=0.05)


def test_nothing_is_claimed_for_blocks_that_say_something_else() -> None:
    found = calibrate(lively_llama(), windows(2 * fewest(0.01)), 0.01)
    assert not found.pays
    assert found.described()["pays"] is False


@settings(max_examples=60)
@given(st.integers(1, 400), st.floats(0.005, 0.5))
def test_p_values_know_what_no_loss_and_too_much_of_it_say(n: int, risk: float) -> None:
    assert (1 + risk) ** -n * (1 - 1e-9) <= p_value(np.zeros(n), risk) <= 1
    assert p_value(np.zeros(2 * n), risk) <= p_value(np.zeros(n), risk)
    assert p_value(np.full(n, risk), risk) == p_value(np.ones(n), risk) == 1


def test_losses_that_hardly_vary_tell_more() -> None:
    generator = np.random.default_rng(0)
    steady, wild = generator.normal(0.03, 0.01, 400).clip(0, 1), (generator.random(400) < 0.03).astype(float)
    assert p_value(steady, 0.05) < 1e-3 < p_value(wild, 0.05)


@pytest.mark.parametrize("risk", [0.02, 0.2])
@pytest.mark.parametrize("shape", ["all or nothing", "shares"])
def test_a_loss_at_the_limit_is_seldom_called_safe(risk: float, shape: str) -> None:
    """Of 4,000 calibrations whose true loss is the limit, no more than the error rate pass."""
    generator, n, error = np.random.default_rng(0), 300, 0.05
    if shape == "shares":
        drawn = generator.beta(risk, 1 - risk, (4000, n))
    else:
        drawn = (generator.random((4000, n)) < risk).astype(float)
    assert np.mean([p_value(losses, risk, error) <= error for losses in drawn]) <= error


def test_what_cannot_be_calibrated_or_left_is_refused() -> None:
    model = lively_llama()
    with pytest.raises(DataError, match=f"10 examples cannot show .* {fewest(0.05)} are needed"):
        calibrate(model, windows(10), 0.05)
    with pytest.raises(SettingError, match=r"risk 1\.5 is not possible"):
        calibrate(model, windows(10), 1.5)
    with pytest.raises(SettingError, match="the model has 4, give 1 to 3"):
        left_by(EarlyExit(4, 0.5), model, Request(PROMPT))
    with pytest.raises(SettingError, match="the model has 1"):
        calibrate(lively_llama(1), windows(200), 0.05)
    with pytest.raises(SettingError, match=r"threshold of 1\.5"):
        EarlyExit(1, 1.5)
    with pytest.raises(ModelError, match="no language blocks"):
        first_blocks(open_model("tiny-ovd").model.eval(), 1)
    for how in ("often", "0%", "100%", "a:0.5", "2:b"):
        with pytest.raises(SettingError, match=f"early exit '{how}' is not possible"):
            ExitWish(how).fitted("tiny-lm")
    with pytest.raises(SettingError, match="needs none"):
        ExitWish("2:0.5", "heldout").fitted("tiny-lm")


def test_a_prompt_without_room_is_refused_before_the_calibration(monkeypatch) -> None:
    def calibrates(*_: object, **__: object) -> None:
        raise AssertionError("calibrated")

    monkeypatch.setattr(ExitWish, "fitted", calibrates)
    with pytest.raises(DataError, match="shorten it"):
        generate("tiny-lm", "once upon a time " * 400, early_exit=ExitWish("5%"))


def test_a_share_is_calibrated_on_the_models_own_data() -> None:
    way, found = ExitWish("10%").fitted(str(embedded_model("tiny-vlm")))
    assert found is not None
    assert found.examples == 2 * fewest(0.1)
    assert way is None or (way == found.way and found.differ < 0.1)
