"""Speculative decoding through the whole engine: the law of plain decoding, its tokens when greedy, its ends."""

from itertools import islice, product

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import chisquare
from tests.engine.test_decode import build_text_model, lively, prompts_for
from tests.models.tiny import build

from gossamer.core.errors import DataError, ModelError, SettingError
from gossamer.engine.decode import Request, decode
from gossamer.engine.sampling import Sampling, law
from gossamer.models.embedded import embedded_model
from gossamer.operate.speculate.decode import Speculation, Statistics
from gossamer.operate.speculate.draft_model import DraftModel, text_of
from gossamer.operate.speculate.lookup import PromptLookup
from gossamer.operate.speculate.self_draft import SelfDraft, first_blocks
from gossamer.operate.speculate.verify import RULES

SIZE = 4
PROMPT = {"input_ids": torch.tensor([[1, 3, 1]])}


def tiny(seed: int, layers: int = 2, size: int = SIZE, context: int = 32):
    """A language model of four words that has opinions."""
    torch.manual_seed(seed)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "max_position_embeddings": context}
    config = transformers.LlamaConfig(vocab_size=size, num_hidden_layers=layers, tie_word_embeddings=False, **small)
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(20)
    return model


def ways() -> dict[str, Speculation]:
    """Every drafter with every rule that it can have."""
    found = {"lookup": Speculation(PromptLookup(2), 2)}
    for name, drafter in (("draft", DraftModel(tiny(1, 1))), ("self", SelfDraft(1))):
        found[name] = Speculation(drafter, 3)
        found |= {f"{name} {rule}": Speculation(drafter, 2, 3, RULES[rule]) for rule in RULES}
    return found


@torch.inference_mode()
def law_of_three(model, sampling: Sampling) -> np.ndarray:
    """The probability of each three tokens that may come first, (SIZE, SIZE, SIZE)."""
    begun = list(product(range(SIZE), repeat=2))
    texts = torch.tensor([[*PROMPT["input_ids"][0].tolist(), *each] for each in begun])
    p = law(model(texts).logits[:, -3:], sampling).view(SIZE, SIZE, 3, SIZE)
    return (p[0, 0, 0][:, None, None] * p[:, 0, 1][:, :, None] * p[:, :, 2]).numpy()


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("way", ways())
def test_the_first_three_tokens_have_the_law_of_plain_decoding(way: str, temperature: float) -> None:
    model, speculation, runs = tiny(0), ways()[way], 300
    sampling = Sampling(temperature=temperature, top_k=3)
    counts, total = np.zeros((SIZE,) * 3), Statistics()
    for seed in range(runs):
        request = Request(PROMPT, Sampling(temperature, 3, seed=seed), 6, eos=frozenset())
        events = speculation.decode(model, request, statistics=total)
        counts[tuple(event.token for event in islice(events, 3))] += 1
    expected = law_of_three(model, sampling)
    possible = expected > 0
    assert possible.sum() <= 27
    assert counts[~possible].sum() == 0
    rare = expected[possible] * runs < 4  # pooled, as χ² needs numbers of some size
    pooled = [np.append(part[possible][~rare], part[possible][rare].sum() + 1e-9) for part in (counts, runs * expected)]
    assert len(pooled[0]) > 8
    assert chisquare(*pooled).pvalue > 0.001
    assert chisquare(pooled[0], np.roll(pooled[1], 1)).pvalue < 1e-6  # the test can tell
    assert min(total.accepted, total.recovered) > runs / 20
    assert total.bonus > 0


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "llava", "qwen2_vl", "idefics3"])
def test_greedy_tokens_are_those_of_plain_decoding(name: str) -> None:
    model = lively(name)
    other = DraftModel(lively("llama"))
    for prompt in prompts_for(name, model):
        request = Request(prompt, max_new_tokens=14, eos=frozenset())
        plain = list(decode(model, [request]))
        same = DraftModel(model, prompt)
        for drafter in (PromptLookup(), SelfDraft(1), other, same):
            for length in (1, 4, None):
                count = Statistics()
                assert list(Speculation(drafter, length).decode(model, request, statistics=count)) == plain
                assert count.passes + count.accepted >= len(plain) - 1
                assert drafter is not same or count.recovered == 0


def test_an_encoders_answers_are_looked_up_too() -> None:
    model = lively("whisper")
    request = Request(prompts_for("whisper", model)[0], max_new_tokens=8, eos=frozenset())
    assert list(Speculation(PromptLookup(), 3).decode(model, request)) == list(decode(model, [request]))


def test_penalties_count_what_is_drafted() -> None:
    model = lively("llama")
    prompt = {"input_ids": torch.tensor([[3, 4, 3]])}
    penalties = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.7}
    greedy = Request(prompt, Sampling(**penalties), 20, eos=frozenset())
    plain = list(decode(model, [greedy]))
    assert plain != list(decode(model, [Request(prompt, max_new_tokens=20, eos=frozenset())]))
    drawn = Request(prompt, Sampling(1.3, top_p=0.9, **penalties), 20, eos=frozenset())
    for request, drafts in ((greedy, 1), (drawn, 1), (drawn, 3)):
        count = Statistics()
        events = list(Speculation(DraftModel(model), 4, drafts).decode(model, request, statistics=count))
        assert request is drawn or events == plain
        assert count.recovered == 0  # its own draft has its own law
        assert count.accepted >= 14


def test_answers_end_as_in_plain_decoding() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_model("tiny-lm"))
    model = build_text_model(tokenizer)
    prompt = dict(tokenizer("The cat", return_tensors="pt"))
    speculation = Speculation(DraftModel(model), 5)

    def ended(**settings) -> list:
        request = Request(prompt, **{"eos": frozenset(), "max_new_tokens": 24, **settings})
        plain = list(decode(model, [request], tokenizer))
        assert list(speculation.decode(model, request, tokenizer)) == plain
        return plain

    free = ended()
    text = "".join(event.text for event in free)
    middle = len(text) // 2
    assert free[-1].finished == "length"
    assert ended(stops=(text[middle : middle + 5],))[-1].finished == "stop"
    assert ended(eos=frozenset({free[9].token}))[-1].finished == "eos"
    assert len(ended(max_new_tokens=1)) == 1
    small = build("llama")  # a context of 64
    request = Request({"input_ids": torch.arange(3, 55)[None]}, eos=frozenset())
    plain = list(decode(small, [request]))
    assert (len(plain), plain[-1].finished) == (12, "context")
    for drafter in (PromptLookup(), DraftModel(small), SelfDraft(1)):
        assert list(Speculation(drafter, 5).decode(small, request)) == plain


def test_a_draft_of_a_smaller_context_or_table_drafts_while_it_can() -> None:
    model = tiny(0)
    request = Request({"input_ids": torch.tensor([[1, 2, 1]])}, max_new_tokens=20, eos=frozenset())
    plain = list(decode(model, [request]))
    count = Statistics()
    assert list(Speculation(DraftModel(tiny(1, context=9)), 2).decode(model, request, statistics=count)) == plain
    assert 0 < count.drafted <= 12
    assert count.plain >= 8
    assert list(Speculation(DraftModel(tiny(1, size=SIZE - 1)), 2).decode(model, request)) == plain
    long = Request({"input_ids": torch.ones(1, 12, dtype=torch.long)}, max_new_tokens=5, eos=frozenset())
    plain = list(decode(model, [long]))
    assert list(Speculation(DraftModel(tiny(1, context=9)), 2).decode(model, long)) == plain
    wide = Speculation(DraftModel(tiny(1, size=SIZE + 3)), 2)
    assert list(wide.decode(model, request)) == list(decode(model, [request]))


def test_a_language_model_drafts_for_one_that_sees() -> None:
    model = lively("llava")
    prompt = prompts_for("llava", model)[0]
    text = text_of(model, prompt)["input_ids"][0].tolist()
    assert text == [token for token in prompt["input_ids"][0].tolist() if token != 90]
    assert 0 < len(text) < prompt["input_ids"].shape[1]
    with pytest.raises(DataError, match="images only"):
        text_of(model, {"input_ids": torch.full((1, 4), 90)})


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2_vl"])
def test_the_first_blocks_are_the_models_own_and_leave_it_alone(name: str) -> None:
    model = lively(name)
    inputs = prompts_for(name, model)[0]
    with torch.inference_mode():
        before = model(**inputs).logits
        shorter = first_blocks(model, 1)
        found = shorter(**inputs).logits
        assert torch.equal(model(**inputs).logits, before)
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in own for parameter in shorter.parameters())
    assert len(list(shorter.parameters())) < len(own)
    assert not torch.allclose(found, before)
    text = shorter.config.get_text_config()
    assert text.num_hidden_layers == 1
    assert model.config.get_text_config().num_hidden_layers == 2
    assert len(getattr(text, "layer_types", None) or [0]) == 1


def test_what_cannot_speculate_is_refused() -> None:
    model = build("llama")
    request = Request({"input_ids": torch.tensor([[3, 4]])})
    for wrong in ({"length": 0}, {"drafts": 0}, {"drafts": 2}):
        with pytest.raises(SettingError):
            Speculation(PromptLookup(), **wrong)
    with pytest.raises(SettingError, match="ngram 0"):
        PromptLookup(0)
    with pytest.raises(SettingError, match="temperature above 0"):
        next(Speculation(SelfDraft(1), drafts=2).decode(model, request))
    for blocks in (0, 2):
        with pytest.raises(SettingError, match=f"self:{blocks} .* has 2, give 1 to 1"):
            next(Speculation(SelfDraft(blocks)).decode(model, request))
    for name in ("mamba", "rwkv"):
        with pytest.raises(ModelError, match="go back"):
            next(Speculation(PromptLookup()).decode(build(name), request))
        with pytest.raises(ModelError, match="go back"):
            next(Speculation(DraftModel(build(name))).decode(model, request))
