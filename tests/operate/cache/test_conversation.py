"""Turn after turn: equal to reading everything anew, up to rounding, while only what is new is read."""

import pytest
import torch
from tests.engine.test_decode import lively, prompts_for
from tests.models.tiny import build

from gossamer.core.errors import ModelError
from gossamer.engine.decode import Request, decode
from gossamer.engine.stepping import Stepper
from gossamer.operate.cache import POLICIES, KeyValues
from gossamer.operate.cache.conversation import Conversation
from gossamer.operate.cache.features import ImageFeatures, digest

SEEING = ["llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm"]


def longer(prompt, *tokens: int):
    found = {**prompt, "input_ids": torch.cat([prompt["input_ids"], torch.tensor([tokens])], 1)}
    if "mm_token_type_ids" in prompt:
        found["mm_token_type_ids"] = torch.nn.functional.pad(prompt["mm_token_type_ids"], (0, len(tokens)))
    return found


def anew(model, prompt, *tokens: int) -> torch.Tensor:
    stepper = Stepper(model)
    found = [stepper.prefill([prompt])]
    return torch.cat([*found, *(stepper.step([token], [True]) for token in tokens)])


def turn(conversation: Conversation, prompt, *tokens: int) -> torch.Tensor:
    found = [conversation.prefill([prompt])]
    return torch.cat([*found, *(conversation.step([token], [True]) for token in tokens)])


@torch.inference_mode()
@pytest.mark.parametrize(
    "name", ["llama", "gemma", "qwen3", "mixtral", *SEEING, "paligemma", "gemma2", "rwkv", "mamba"]
)
def test_later_turns_read_only_what_is_new(name: str) -> None:
    model = lively(name)
    first = prompts_for(name, model)[0]
    conversation = Conversation(model)
    assert torch.equal(turn(conversation, first, 11, 12), anew(model, first, 11, 12))
    second = longer(first, 11, 12, 13, 14)
    assert_near(turn(conversation, second, 21), anew(model, second, 21))
    told = first["input_ids"].shape[1] + 2
    assert conversation.reused == (0 if name == "paligemma" else told)
    assert_near(turn(conversation, second), anew(model, second))  # the same again: its last token is read
    goes_back = name not in ("paligemma", "rwkv", "mamba", "gemma2")
    assert conversation.reused == (told + 1 if goes_back else 0)
    changed = longer(first, 11, 50, 51)
    assert_near(turn(conversation, changed, 5), anew(model, changed, 5))
    assert conversation.reused == (told - 1 if goes_back else 0)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", SEEING)
def test_other_pixels_are_another_conversation_and_more_images_are_not(name: str) -> None:
    model = lively(name)
    prompt = prompts_for(name, model)[0]
    image = int((prompt["input_ids"] == 90).long().argmax())
    conversation = Conversation(model)
    turn(conversation, prompt, 11)
    other = {**prompt, "pixel_values": prompt["pixel_values"].flip(0) + 0.5}
    assert_near(turn(conversation, other), anew(model, other))
    assert conversation.reused == image
    plain = {"input_ids": torch.tensor([[3, 4, 5, 6]])}
    assert_near(turn(conversation, plain), anew(model, plain))
    assert_near(turn(conversation, prompt, 11), anew(model, prompt, 11))
    told = prompt["input_ids"].shape[1] + 1
    two = followed_by_another(longer(prompt, 11, 12), prompt)
    assert_near(turn(conversation, two, 33), anew(model, two, 33))
    assert conversation.reused == told
    three = followed_by_another(longer(two, 33), other)
    assert_near(turn(conversation, three), anew(model, three))
    assert conversation.reused == two["input_ids"].shape[1] + 1


def followed_by_another(prompt, more):
    """A prompt that goes on with another one and its images."""
    found = {}
    for name in prompt:
        tokenwise = name in ("input_ids", "mm_token_type_ids")
        batched = prompt[name].ndim == 5 and "image_sizes" not in prompt
        found[name] = torch.cat([prompt[name], more[name]], 1 if tokenwise or batched else 0)
    return found


@torch.inference_mode()
@pytest.mark.parametrize("name", [*SEEING, "paligemma"])
def test_images_that_come_again_are_not_encoded_again(name: str) -> None:
    model = lively(name)
    prompt = prompts_for(name, model)[0]
    behind = {**prompt, "input_ids": prompt["input_ids"].clone()}
    behind["input_ids"][0, 0] = 77  # a question before the image: nothing is in common
    features = ImageFeatures(entries=2)
    conversation = Conversation(model, features=features)
    turn(conversation, prompt)
    assert torch.equal(turn(conversation, behind), anew(model, behind))
    assert (conversation.reused, features.hits) == (0, 1)
    elsewhere = Conversation(model, features=features)
    assert torch.equal(turn(elsewhere, prompt), anew(model, prompt))
    assert features.hits == 2
    for step in (1.0, 2.0):  # two others drive it out
        turn(elsewhere, {**behind, "pixel_values": prompt["pixel_values"] + step})
    turn(elsewhere, prompt)
    assert features.hits == 2
    assert "get_image_features" not in vars(model.base_model)


def test_a_digest_is_of_the_content() -> None:
    numbers = torch.arange(6.0)
    same = [
        digest((numbers, {"a": 1})),
        digest((numbers.clone(), {"a": 1})),
        digest((torch.arange(12.0)[:6], {"a": 1})),
    ]
    assert len(set(same)) == 1
    others = [numbers.double(), numbers.view(2, 3), numbers + 1, numbers.to(torch.bfloat16)]
    assert len({digest((other, {"a": 1})) for other in others} | set(same)) == 5
    assert digest([[numbers], []]) != digest([[], [numbers]])


@torch.inference_mode()
def test_with_a_cache_that_evicts_a_turn_goes_on_with_what_was_kept() -> None:
    model = build("llama")
    for positions in ("keep", "rerotate"):
        keeper = KeyValues(POLICIES["streaming"](sinks=2), budget=12, block=4, positions=positions)
        conversation, stepper = Conversation(model, keeper), Stepper(model, keeper)
        first = {"input_ids": torch.arange(3, 33)[None]}
        assert torch.equal(turn(conversation, first, 40), turn(stepper, first, 40))
        second = longer(first, 40, 41)
        assert_near(turn(conversation, second, 42), torch.cat([stepper.step([each], [True]) for each in (41, 42)]))
        assert conversation.reused == 31
        early = {"input_ids": torch.tensor([[3, 4, 5, 60, 61]])}  # back to before the evicted: anew
        assert torch.equal(turn(conversation, early), anew(model, early))
        assert conversation.reused == 0


def test_the_decode_loop_takes_a_conversation() -> None:
    model = lively("llama")
    conversation = Conversation(model)
    prompt = torch.tensor([[5, 6, 7, 8]])
    for _ in range(3):
        request = Request({"input_ids": prompt}, max_new_tokens=5, eos=frozenset())
        tokens = [event.token for event in decode(model, [request], stepper_of=lambda _: conversation)]
        assert tokens == [event.token for event in decode(model, [request])]
        prompt = torch.cat([prompt, torch.tensor([[*tokens, 9, 10]])], 1)
    assert conversation.reused == 4 + 2 * 7 - 3
    with pytest.raises(ModelError, match="one sequence"):
        conversation.prefill([{"input_ids": prompt}] * 2)


@torch.inference_mode()
def test_after_a_failure_all_is_read_anew() -> None:
    model = lively("llama")
    conversation = Conversation(model)
    first = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    turn(conversation, first, 9)
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        conversation.prefill([longer(first, 9, 10)])
    hook.remove()
    assert torch.equal(turn(conversation, longer(first, 9, 10)), anew(model, longer(first, 9, 10)))
    assert conversation.reused == 0
