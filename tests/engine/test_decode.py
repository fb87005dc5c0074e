"""The decode loop against transformers' `generate`, alone and together, and what ends a request."""

import pytest
import torch
import transformers
from tests.models.feeds import inputs_for
from tests.models.tiny import build

from gossamer.core.errors import DataError, ModelError, SettingError
from gossamer.engine.decode import Event, Request, decode
from gossamer.engine.detokenise import TextStream
from gossamer.engine.sampling import Sampling
from gossamer.models.embedded import embedded_model

WRITERS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "llava", "llava_next", "llava_onevision",
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "paligemma", "whisper", "rwkv", "mamba", "mixtral",
    "qwen2_moe", "qwen3_moe",
)  # fmt: skip
NEW = 6
UNCHANGED = ("embed", "lm_head", "conv1d", "A_log")


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(embedded_model("tiny-lm"))


def lively(name: str):
    """A tiny model whose layers say more than its embeddings, so that what it writes depends on all that it read."""
    model = build(name, seed=3)
    for path, parameter in model.named_parameters():
        if "embed_positions" in path or (parameter.ndim > 1 and not any(word in path for word in UNCHANGED)):
            parameter.mul_(3 if name == "whisper" else 8)
        elif name == "whisper" and "embed_tokens" in path:
            parameter.mul_(0.3)
    return model


def prompts_for(name: str, model) -> list[dict[str, torch.Tensor]]:
    """Two prompts of different lengths through every part of the model."""
    both = inputs_for(name, model)
    ids = "decoder_input_ids" if name == "whisper" else "input_ids"
    count = both[ids].shape[0]
    first, second = ({key: value.chunk(count)[at] for key, value in both.items()} for at in (0, count - 1))
    second[ids] = torch.cat([second[ids], torch.tensor([[5, 71, 33]])], 1)
    if "mm_token_type_ids" in second:
        second["mm_token_type_ids"] = torch.nn.functional.pad(second["mm_token_type_ids"], (0, 3))
    if name == "paligemma":  # as its processor says: the whole prompt sees itself both ways
        return [{**each, "token_type_ids": torch.zeros_like(each["input_ids"])} for each in (first, second)]
    return [first, second]


def generated(model, prompt: dict[str, torch.Tensor], **settings) -> list[int]:
    """What transformers writes; Whisper by the loop of all models, not by its own for long recordings."""
    settings = {"max_new_tokens": NEW, "do_sample": False, **settings}
    out = transformers.GenerationMixin.generate(model, **prompt, **settings)
    return out[0, prompt["decoder_input_ids" if "decoder_input_ids" in prompt else "input_ids"].shape[1] :].tolist()


def written(model, requests: list[Request], tokenizer=None) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in requests]
    for event in decode(model, requests, tokenizer):
        found[event.request].append(event.token)
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_greedy_tokens_are_those_of_generate_alone_and_together(name: str) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    expected = [generated(model, prompt) for prompt in prompts]
    assert expected[0] != expected[1]
    requests = [Request(prompt, max_new_tokens=NEW) for prompt in prompts]
    assert [written(model, [request])[0] for request in requests] == expected
    assert written(model, requests) == expected
    assert written(model, requests[::-1]) == expected[::-1]


def test_images_and_where_they_stand_matter() -> None:
    model = lively("qwen2_vl")
    prompt = prompts_for("qwen2_vl", model)[0]
    other = {**prompt, "pixel_values": prompt["pixel_values"].flip(0)}
    moved = {**prompt, "mm_token_type_ids": torch.zeros_like(prompt["mm_token_type_ids"])}
    requests = [Request(each, max_new_tokens=12, eos=frozenset()) for each in (prompt, other, moved)]
    answers = [written(model, [request])[0] for request in requests]
    assert answers[0] != answers[1]
    assert answers[0] != answers[2]
    assert written(model, requests[:2] * 2) == answers[:2] * 2


def test_a_prompt_without_an_image_beside_one_with() -> None:
    model = build("llava", seed=3)
    seen = prompts_for("llava", model)[1]
    blind = {"input_ids": torch.tensor([[7, 8, 9]])}
    requests = [Request(each, max_new_tokens=NEW) for each in (blind, seen)]
    assert written(model, requests) == [generated(model, blind), generated(model, seen)]


@pytest.mark.parametrize("name", ["llama", "mamba", "rwkv"])
def test_drawn_tokens_do_not_depend_on_the_batch(name: str) -> None:
    model = build(name)
    requests = [
        Request({"input_ids": torch.arange(3, 5 + 2 * seed)[None]}, Sampling(temperature=t, top_p=0.9, seed=seed), 8)
        for seed, t in enumerate((1.3, 0.0, 0.7))
    ]
    alone = [written(model, [request])[0] for request in requests]
    assert written(model, requests) == alone
    assert written(model, requests[::-1]) == alone[::-1]
    assert alone[0] != written(model, [Request(requests[0].inputs, Sampling(temperature=1.3, seed=9), 8)])[0]


def test_penalties_are_those_of_generate() -> None:
    model = build("llama")
    prompt = {"input_ids": torch.tensor([[3, 4, 3]])}
    request = Request(prompt, Sampling(repetition_penalty=1.5), 20, eos=frozenset())
    expected = generated(model, prompt, max_new_tokens=20, repetition_penalty=1.5, eos_token_id=None)
    assert written(model, [request]) == [expected]
    assert expected != generated(model, prompt, max_new_tokens=20, eos_token_id=None)


def _events(model, request: Request, tokenizer=None) -> list[Event]:
    return list(decode(model, [request], tokenizer))


def test_what_ends_a_request() -> None:
    model = build("llama")
    prompt = {"input_ids": torch.arange(3, 63)[None]}  # of a context of 64
    free = written(model, [Request(prompt, eos=frozenset())])[0]
    assert len(free) == 4
    assert _events(model, Request(prompt, eos=frozenset()))[-1].finished == "context"
    assert [event.finished for event in _events(model, Request(prompt, max_new_tokens=2, eos=frozenset()))] == [
        None,
        "length",
    ]
    first = free.index(free[2])
    ended = _events(model, Request(prompt, eos=frozenset({free[2], 95})))
    assert ([event.token for event in ended], ended[-1].finished) == (free[: first + 1], "eos")


def test_the_ended_wait_for_the_others_beyond_their_own_context() -> None:
    model = build("whisper", seed=3)  # 16 learned positions
    sound = prompts_for("whisper", model)[0]
    lengths = (15, 3)
    prompts = [{**sound, "decoder_input_ids": torch.arange(3, 3 + length)[None]} for length in lengths]
    requests = [Request(prompt, eos=frozenset()) for prompt in prompts]
    alone = [written(model, [request])[0] for request in requests]
    assert [len(answer) for answer in alone] == [16 - length for length in lengths]
    assert written(model, requests) == alone


def test_stop_strings_end_across_token_borders(tokenizer) -> None:
    model = build_text_model(tokenizer)
    prompt = dict(tokenizer("The cat", return_tensors="pt"))
    free = _events(model, Request(prompt, max_new_tokens=24, eos=frozenset()), tokenizer)
    text = "".join(event.text for event in free)
    assert text == tokenizer.decode([event.token for event in free])
    middle = len(text) // 2
    stop = text[middle - 3 : middle + 4]
    ended = _events(model, Request(prompt, max_new_tokens=24, stops=("not there", stop), eos=frozenset()), tokenizer)
    assert "".join(event.text for event in ended) == text[: text.index(stop)]
    assert ended[-1].finished == "stop"
    assert len(ended) < len(free)
    with pytest.raises(DataError, match="tokenizer"):
        _events(model, Request(prompt, stops=(stop,)))


def build_text_model(tokenizer):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **small)
    return transformers.LlamaForCausalLM(config).eval()


TEXT = "Ünïcode – 日本語 🦉👩‍🚀 naïve ﷽ done."


def test_the_stream_gives_whole_characters_only(tokenizer) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(TEXT) // 2
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.end() == tokenizer.decode(ids) == TEXT
    assert "\ufffd" not in "".join(pieces)
    assert sum(map(bool, pieces)) > 10
    assert "" in pieces  # some character has more than one token


def test_the_stream_is_the_tokenizers_text_whatever_comes(tokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(len(tokenizer), (12,), generator=generator).tolist()
        stream = TextStream(tokenizer)
        found = "".join([*map(stream.push, ids), stream.end()])
        assert found == tokenizer.decode(ids, skip_special_tokens=True)


def test_spaces_in_front_of_words_stay() -> None:
    tokens = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3, "<0xC3>": 4, "<0xA9>": 5, "▁": 6}
    from tokenizers import Tokenizer, decoders, models

    inner = Tokenizer(models.BPE(tokens, [], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    for ids in ([1, 2, 3, 4, 5, 2], [0, 1, 2], [6, 1, 4, 4, 5, 4], [4, 5, 4, 5, 1]):
        stream = TextStream(tokenizer)
        pieces = [*map(stream.push, ids), stream.end()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_text_that_may_become_a_stop_string_is_held_back(tokenizer) -> None:
    stream = TextStream(tokenizer, ("\n\nQ:", "abab"))
    said = [stream.push(token) for token in tokenizer("x\n\nR ababy", add_special_tokens=False)["input_ids"]]
    assert stream.stopped
    assert "".join(said) + stream.end() == "x\n\nR "
    other = TextStream(tokenizer, ("dog!",))
    pieces = [other.push(token) for token in tokenizer("a dog", add_special_tokens=False)["input_ids"]]
    assert "".join(pieces) == "a "
    assert other.end() == "dog"
    assert not other.stopped


def test_what_cannot_be_decoded_is_refused() -> None:
    model = build("llama")
    with pytest.raises(DataError, match="64 tokens, and the model's context holds 64"):
        _events(model, Request({"input_ids": torch.full((1, 64), 5)}))
    with pytest.raises(DataError, match="no tokens"):
        _events(model, Request({"input_ids": torch.zeros(1, 0, dtype=torch.long)}))
    with pytest.raises(ModelError, match=r"ViT.*does not write"):
        _events(build("vit"), Request({"input_ids": torch.tensor([[1]])}))
    model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="no numbers"):
        _events(model, Request({"input_ids": torch.tensor([[1]])}))
    with pytest.raises(SettingError, match="max_new_tokens 0"):
        Request({}, max_new_tokens=0)
    assert list(decode(model, [])) == []
