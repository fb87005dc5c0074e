"""One sequence taken out of a batch: it goes back and on by itself, and the batch goes on as if it had not been."""

import pytest
import torch
from tests.engine.test_decode import WRITERS, lively, prompts_for

from gossamer.core.errors import ModelError
from gossamer.engine.stepping import Stepper

STATES = ("rwkv", "mamba")  # their past is a state that has no way back
AHEAD = torch.tensor([[11, 40, 7]])


def stepped(stepper, *tokens: int) -> torch.Tensor:
    return stepper.step(tokens, [True] * len(tokens))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "whisper"])
def test_it_goes_on_alone_and_the_batch_without_a_trace(name: str) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    batch, other = Stepper(model), Stepper(model)
    for stepper in (batch, other):
        stepper.prefill(prompts)
        stepped(stepper, 31, 5)
    alone = Stepper(model)
    alone.prefill([prompts[0]])
    stepped(alone, 31)
    one = batch.taken(0)
    assert 0 < one.cache_bytes < batch.cache_bytes
    close(one.resume(AHEAD), torch.stack([stepped(alone, token) for token in AHEAD[0].tolist()])[-1])
    for token in range(20, 32):  # Gemma's windows of 8 are passed on the way
        close(stepped(one, token), stepped(alone, token))
        close(stepped(batch, token, 9), stepped(other, token, 9))


@torch.inference_mode()
@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("whisper", *STATES)])
def test_led_back_it_reads_on_and_joins_others(name: str) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    batch, alone = Stepper(model), Stepper(model)
    batch.prefill(prompts)
    alone.prefill([prompts[1]])
    batch.extend(torch.tensor([[7, 8], [50, 51]]))
    one = batch.taken(1)
    batch.rewind(2)
    one.rewind(2)
    close(one.resume(AHEAD), alone.extend(AHEAD)[:, -1])
    batch.join(one)
    oracle = Stepper(model)
    oracle.prefill(prompts)
    for token in range(20, 32):
        expected = torch.cat([stepped(oracle, token, token + 1), stepped(alone, token + 2)])
        close(stepped(batch, token, token + 1, token + 2), expected)


def test_a_past_of_another_make_is_refused() -> None:
    model = lively("llama")
    stepper = Stepper(model)
    stepper._past = {"past_key_values": object()}
    with pytest.raises(ModelError, match="no copy of one sequence"):
        stepper.taken(0)
