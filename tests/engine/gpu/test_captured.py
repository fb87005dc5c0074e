"""The repeated step: what it writes is what the plain stepper writes, in whatever order sequences come and go.

On a processor the same step runs unrecorded; where there is a GPU it is replayed.
"""

from typing import Any

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import build
from torch import Tensor, nn

from gossamer.engine.decode import Request, decode
from gossamer.engine.gpu import captured
from gossamer.engine.gpu.captured import Captured, CapturedStepper
from gossamer.engine.gpu.layers import move
from gossamer.engine.stepping import Stepper

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not CUDA, reason="needs a GPU"))]


FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "llava", "qwen2_vl", "qwen2_5_vl", "smolvlm", "paligemma")


def placed_model(name: str, device: str) -> Any:
    model = build(name)
    move(model, torch.float32, torch.device(device))
    return model


def prompts_for(name: str, model: nn.Module) -> list[dict[str, Tensor]]:
    both = inputs_for(name, build(name))
    count = both["input_ids"].shape[0]
    return [{key: value.chunk(count)[row] for key, value in both.items()} for row in range(count)]


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FAMILIES)
def test_steps_are_those_of_the_plain_stepper(name: str, device: str) -> None:
    model = placed_model(name, device)
    prompts = prompts_for(name, model)
    mine, oracle = Captured(model)(model), Stepper(model)
    same(mine.prefill(prompts), oracle.prefill(prompts))
    for token in range(5, 10):
        tokens = [token + row for row in range(len(prompts))]
        same(mine.step(tokens, [True] * len(tokens)), oracle.step(tokens, [True] * len(tokens)))
    assert isinstance(mine, CapturedStepper)
    assert mine._held is not None


@torch.inference_mode()
@pytest.mark.parametrize("device", DEVICES)
def test_sequences_come_and_go(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "LEAST_CAPACITY", 16)  # so that the cache grows on the way
    model = placed_model("llama", device)
    make = Captured(model)
    prompts = [{"input_ids": torch.arange(3, 3 + length)[None]} for length in (4, 9, 2)]
    sides = [make(model), Stepper(model)], [make(model), Stepper(model)]
    for mine, oracle in zip(*sides, strict=True):
        assert mine is not oracle

    def run(first: Any, second: Any) -> list[Tensor]:
        found = [first.prefill(prompts[:2])]
        found += [first.step([7, 8], [True, True]) for _ in range(3)]
        found.append(second.prefill(prompts[2:]))
        found += [second.step([9], [True]) for _ in range(2)]
        first.join(second)
        found += [first.step([4, 5, 6], [True, True, True]) for _ in range(9)]
        first.select([2, 0])
        found += [first.step([4, 5], [True, True]) for _ in range(3)]
        found.append(first.extend(torch.tensor([[6, 7], [8, 9]])))
        first.rewind(1)
        found += [first.step([4, 5], [True, True]) for _ in range(3)]
        return found

    for found, expected in zip(run(make(model), make(model)), run(Stepper(model), Stepper(model)), strict=True):
        same(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize("device", DEVICES)
def test_two_steppers_share_the_recordings(device: str) -> None:
    model = placed_model("llama", device)
    make = Captured(model)
    prompts = [{"input_ids": torch.arange(3, 9)[None]}, {"input_ids": torch.arange(20, 26)[None]}]
    mine, oracles = [make(model) for _ in prompts], [Stepper(model) for _ in prompts]
    for stepper, oracle, prompt in zip(mine, oracles, prompts, strict=True):
        same(stepper.prefill([prompt]), oracle.prefill([prompt]))
    for token in range(5, 9):
        for stepper, oracle in zip(mine, oracles, strict=True):
            same(stepper.step([token], [True]), oracle.step([token], [True]))
    assert len(make._recordings) == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba", "mixtral"])
def test_answers_are_the_same_whatever_the_past_is(name: str, device: str) -> None:
    model = placed_model(name, device)
    requests = [Request({"input_ids": torch.arange(3, 3 + length)[None]}, max_new_tokens=12) for length in (3, 8)]
    found = [(event.request, event.token) for event in decode(model, requests, stepper_of=Captured(model))]
    assert found == [(event.request, event.token) for event in decode(model, requests)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("llama", None), ("mixtral", "experts"), ("gemma2", "not by sdpa")],
)
def test_a_model_whose_steps_are_not_recorded_says_why(name: str, reason: str | None) -> None:
    found = Captured(build(name)).not_recorded
    assert found is None if reason is None else reason in str(found)
