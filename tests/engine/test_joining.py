"""Sequences that join, leave and fork while others write: each writes what it writes alone."""

import random

import pytest
import torch
from tests.engine.test_decode import WRITERS, lively, prompts_for
from tests.models.tiny import build

from gossamer.core.errors import DataError, ModelError
from gossamer.engine.decode import Batch, Request, decode
from gossamer.engine.native.library import Engine
from gossamer.engine.native.lower import lower
from gossamer.engine.native.stepper import NativeStepper, Precision
from gossamer.engine.sampling import Sampling
from gossamer.engine.stepping import Stepper

NEW = 6


class _Greedy:
    """Sequences inside one stepper, by name."""

    def __init__(self, model) -> None:
        self.model, self.stepper, self.names = model, None, []
        self.written: dict[int, list[int]] = {}
        self._next: list[int] = []

    def add(self, name: int, prompt) -> None:
        fresh = Stepper(self.model)
        self._next.append(int(fresh.prefill([prompt]).argmax()))
        if self.stepper is None:
            self.stepper = fresh
        else:
            self.stepper.join(fresh)
        self.names.append(name)
        self.written[name] = self._next[-1:]

    def step(self) -> None:
        self._next = self.stepper.step(self._next, [True] * len(self._next)).argmax(-1).tolist()
        for name, token in zip(self.names, self._next, strict=True):
            self.written[name].append(token)

    def keep(self, rows: list[int]) -> None:
        self.names, self._next = [self.names[row] for row in rows], [self._next[row] for row in rows]
        if rows:
            self.stepper.select(rows)
        else:
            self.stepper = None


@torch.inference_mode()
def alone(model, prompt, count: int) -> list[int]:
    one = _Greedy(model)
    one.add(0, prompt)
    for _ in range(count - 1):
        one.step()
    return one.written[0]


@pytest.mark.parametrize("engine", [Stepper, "native"])
@pytest.mark.parametrize("name", ["gemma3", "llama", "mistral", "qwen2_vl"])
def test_a_prompt_read_by_pieces_writes_what_it_writes_alone(name: str, engine) -> None:
    model = lively(name)
    steps = engine
    if engine == "native":
        program, threads = lower(model, dtype=torch.float32), Engine(1)
        steps = lambda model: NativeStepper(program, model, threads, Precision(exact=True))  # noqa: E731
    prompts = [{"input_ids": torch.arange(3, 3 + length)[None]} for length in (23, 5)]
    expected = [alone(model, prompt, NEW) for prompt in prompts]
    batch = Batch(model, stepper_of=steps)
    events = batch.admit({0: Request(prompts[1], max_new_tokens=NEW, eos=frozenset())})
    reading = batch.begin(1, Request(prompts[0], max_new_tokens=NEW, eos=frozenset()))
    while reading.left:
        assert len(batch) == 1
        reading.read(9)
        events += batch.step()
    events += batch.enter(reading)
    while len(batch):
        events += batch.step()
    found = [[event.token for event in events if event.request == number] for number in (1, 0)]
    assert found == expected


@pytest.mark.parametrize("name", WRITERS)
@torch.inference_mode()
def test_who_joins_and_leaves_at_random_writes_what_it_writes_alone(name: str) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    if name not in ("whisper", "llava", "paligemma"):  # and text alone, longer and shorter
        prompts += [{"input_ids": torch.arange(3, 3 + length)[None]} for length in (14, 2)]
    expected = [alone(model, prompt, NEW) for prompt in prompts]
    assert expected[0] != expected[1]
    chance = random.Random(0)
    crowd = _Greedy(model)
    waiting = [number for number in range(len(prompts)) for _ in range(3)]
    chance.shuffle(waiting)
    of: dict[int, int] = {}
    left = 0
    while waiting or crowd.names:
        while waiting and len(crowd.names) < 4 and (not crowd.names or chance.random() < 0.5):
            of[len(of)] = waiting.pop()
            crowd.add(len(of) - 1, prompts[of[len(of) - 1]])
        crowd.step()
        stay = [row for row, at in enumerate(crowd.names) if len(crowd.written[at]) < NEW and chance.random() < 0.96]
        chance.shuffle(stay)
        left += len(crowd.names) - len(stay)
        if len(stay) < len(crowd.names) or chance.random() < 0.3:
            crowd.keep(stay)
    assert left == len(of) == 3 * len(prompts)
    for each, tokens in crowd.written.items():
        assert tokens == expected[of[each]][: len(tokens)]
    assert sum(len(tokens) == NEW for tokens in crowd.written.values()) > 1


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2_vl", "whisper", "mamba", "rwkv"])
@torch.inference_mode()
def test_a_fork_goes_its_own_way(name: str) -> None:
    model = lively(name)
    first, second = prompts_for(name, model)
    stepper = Stepper(model)
    stepper.prefill([first, second])
    stepper.select([1, 0, 1])
    stepper.step([7, 8, 9], [True] * 3)
    found = stepper.step([3, 4, 5], [True] * 3)
    for row, (prompt, tokens) in enumerate(((second, (7, 3)), (first, (8, 4)), (second, (9, 5)))):
        one = Stepper(model)
        one.prefill([prompt])
        for token in tokens:
            expected = one.step([token], [True])
        torch.testing.assert_close(found[row], expected[0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_what_only_the_gone_needed_is_given_up() -> None:
    stepper = Stepper(build("llama"))
    stepper.prefill([{"input_ids": torch.arange(3, 43)[None]}, {"input_ids": torch.tensor([[5, 6]])}])
    stepper.step([1, 1], [True, True])
    stepper.select([1])
    stepper.step([1], [True])
    keys = [layer.keys for layer in stepper._past["past_key_values"].layers]
    assert [each.shape[-2] for each in keys] == [4, 4]
    assert all(each.untyped_storage().nbytes() == each.nbytes for each in keys)


@torch.inference_mode()
def test_what_cannot_join_is_refused() -> None:
    from transformers import DynamicCache, LlamaConfig
    from transformers.cache_utils import DynamicIndexedLayer

    from gossamer.engine.pasts import join_rows

    cache = DynamicCache(config=LlamaConfig(num_hidden_layers=1))
    cache.layers = [DynamicIndexedLayer()]
    with pytest.raises(ModelError, match="keeps DynamicIndexedLayer"):
        join_rows(cache, cache)


def test_requests_of_a_batch_come_and_go() -> None:
    model = build("llama", seed=3)
    requests = [
        Request({"input_ids": torch.arange(3, 5 + 2 * seed)[None]}, Sampling(temperature=0.9, seed=seed), 6 + seed)
        for seed in range(3)
    ]
    expected = [[event.token for event in decode(model, [request])] for request in requests]
    batch = Batch(model)
    assert batch.step() == batch.admit({}) == []
    events = batch.admit({7: requests[0]}) + batch.step()
    events += batch.admit({9: requests[1], 8: requests[0]}) + batch.step()
    batch.leave({8})
    with pytest.raises(DataError, match="no tokens"):
        batch.admit({1: Request({"input_ids": torch.zeros(1, 0, dtype=torch.long)})})
    events += batch.admit({3: requests[2]})
    assert len(batch) == 3
    while len(batch):
        events += batch.step()
    found = {number: [event.token for event in events if event.request == number] for number in (7, 9, 8, 3)}
    assert found == {7: expected[0], 9: expected[1], 8: expected[0][:2], 3: expected[2]}
    assert batch.admit({1: Request(requests[0].inputs, max_new_tokens=1)})[0].finished == "length"
    assert len(batch) == 0
