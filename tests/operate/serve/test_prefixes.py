"""A prompt that begins as an earlier one is read from where they part: its answer is the same, its memory bounded."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from test_serve import asking, data_url

from gossamer.data.scenes import scene
from gossamer.engine.decode import Batch, Request
from gossamer.engine.sampling import Sampling
from gossamer.engine.stepping import Stepper
from gossamer.evaluate.prompts import prompt_inputs
from gossamer.operate.cache.prefixes import PrefixStore, cannot_go_on
from gossamer.operate.writer import Writer, open_writer

STORY = "Once upon a time there was a little girl named Lily. She had a red ball that she liked very much."
ROOM = 10**8


@pytest.fixture(scope="module", params=["torch", "native"])
def writer(request) -> Writer:
    return open_writer("tiny-lm", request.param)


def store_of(model, stepper_of, limit: int) -> PrefixStore:
    return PrefixStore(model, limit, cannot_go_on(model, stepper_of))


def written(server, prompt: str, tokens: int = 12) -> tuple[str, int, int]:
    """The text, and how many tokens of the prompt there were and had been read before."""
    answer = server.client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=tokens)
    return answer.choices[0].text, answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens


def test_the_next_turn_reads_only_what_is_new(serve, writer) -> None:
    plain, server = serve(writer), serve(writer, prefix_bytes=ROOM)
    answer, length, reused = written(server, STORY)
    assert (answer, reused) == (written(plain, STORY)[0], 0)
    turn = f"{STORY}{answer} Then her mother said:"
    again, longer, reused = written(server, turn)
    assert length + 8 < reused < longer, "the answer had been read too"
    assert again == written(plain, turn)[0]
    assert written(server, STORY) == (answer, length, length - 1), "one token is always read"
    other = STORY.replace("She had", "He lost")
    text, _, reused = written(server, other)
    assert (text, reused > 8) == (written(plain, other)[0], True)
    metrics = server.ask("GET", "/metrics")[2]
    assert "gossamer_cached_prompt_tokens_total" in metrics
    assert 0 < server.service.worker.prefixes.bytes < ROOM
    assert server.client.models.list().data[0].gossamer["prefix_cache"] == {"bytes": ROOM}
    assert plain.client.models.list().data[0].gossamer["prefix_cache"] == {"off": "not wanted"}


def test_a_crowd_that_begins_alike_is_answered_as_each_alone(serve, writer) -> None:
    server = serve(writer, batch=4, prefix_bytes=ROOM)
    prompts = [f"{STORY} One {what}" for what in ("day", "cat", "big dog was", "night")] + ["A man", "The sun"]
    plain = [written(serve(writer), prompt)[0] for prompt in prompts]
    written(server, STORY)
    with ThreadPoolExecutor(6) as crowd:
        found = list(crowd.map(lambda prompt: written(server, prompt), prompts))
    assert [text for text, *_ in found] == plain
    assert all(reused > 16 for *_, reused in found[:4])
    assert not any(reused for *_, reused in found[4:])


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_images_must_be_the_same(serve, engine) -> None:
    writer = open_writer("tiny-vlm", engine)
    plain, server = serve(writer), serve(writer, prefix_bytes=ROOM)
    one, two = (data_url(Image.fromarray(scene("test", number).image)) for number in range(2))

    def ask(server, question: str, url: str) -> tuple[str, int]:
        answer = server.client.chat.completions.create(
            model="tiny", messages=asking(question, url), temperature=0, max_tokens=6
        )
        return answer.choices[0].message.content, answer.usage.prompt_tokens_details.cached_tokens

    first, second = "How many shapes are there?", "How many circles are there?"
    assert ask(server, first, one) == ask(plain, first, one)
    text, reused = ask(server, second, one)
    assert (text, reused > 16) == (ask(plain, second, one)[0], True)
    assert ask(server, second, two) == ask(plain, second, two), "another picture: nothing is taken over"


def run(writer: Writer, store: PrefixStore, *prompts: str, tokens: int = 4) -> list[int]:
    """Reads the prompts one after another; how many tokens of each were not read again."""
    reused = []
    for prompt in prompts:
        batch = Batch(writer.opened.model, writer.opened.tokenizer, writer.stepper_of, store)
        batch.admit({0: Request(prompt_inputs(writer.opened, prompt, raw=True), Sampling(), tokens)})
        reused += batch.reused.values()
        while len(batch):
            batch.step()
    return reused


def test_memory_is_bounded_and_the_latest_stay(writer) -> None:
    model, prompts = writer.opened.model, [f"{name} {STORY}" for name in ("Tom", "Anna", "Ben")]
    store = store_of(model, writer.stepper_of, ROOM)
    run(writer, store, prompts[0])
    each = store.bytes
    store = store_of(model, writer.stepper_of, 2 * each + each // 4)
    run(writer, store, *prompts[:2])
    assert run(writer, store, prompts[0])[0] > 16, "used again: the other one is the oldest now"
    run(writer, store, prompts[2])
    assert store.bytes <= store.limit
    assert [count > 16 for count in run(writer, store, prompts[0], prompts[1])] == [True, False]
    small = store_of(model, writer.stepper_of, each // 2)
    assert run(writer, small, prompts[0], prompts[0]) == [0, 0]
    assert small.bytes == 0


def test_what_another_one_begins_with_is_kept_once(writer) -> None:
    store = store_of(writer.opened.model, writer.stepper_of, ROOM)
    run(writer, store, STORY, tokens=1)
    assert len(store._kept) == 1
    run(writer, store, f"{STORY} And then", f"{STORY} And then they all went home.", tokens=1)
    assert len(store._kept) == 1
    run(writer, store, f"{STORY} But then", tokens=1)
    assert len(store._kept) == 2


def test_a_model_that_cannot_go_back_keeps_nothing_and_says_why() -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.RwkvConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    store = store_of(transformers.RwkvForCausalLM(config).eval(), Stepper, ROOM)
    assert "cannot go back" in store.off
    assert store.find({"input_ids": torch.ones(1, 40, dtype=torch.long)}) is None
