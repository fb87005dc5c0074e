"""Caches that keep less: the same as all where all fits, and what goes where it does not."""

import pytest
import torch
from tests.engine.test_decode import WRITERS, lively, prompts_for, written
from tests.models.tiny import build

from gossamer.core.errors import DataError, ModelError, SettingError
from gossamer.engine.decode import Request
from gossamer.engine.stepping import Stepper, bytes_of
from gossamer.operate.cache import POLICIES, KeyValues
from gossamer.operate.cache.policy import Policy

SERVED = [name for name in WRITERS if name not in ("whisper", "rwkv", "mamba", "mistral", "llava_next", "gemma3")]
SMALL: dict[str, Policy] = {
    "h2o": POLICIES["h2o"](),
    "snapkv": POLICIES["snapkv"](window=3, pool=3),
    "scissorhands": POLICIES["scissorhands"](history=6, recent=2),
    "streaming": POLICIES["streaming"](sinks=2),
    "chance": POLICIES["chance"](sinks=1, recent=2),
}


def continued(stepper: Stepper, prompts, tokens=(11, 40, 7, 65)) -> torch.Tensor:
    """Logits after the prompts and after each of the tokens."""
    found = [stepper.prefill(prompts)]
    return torch.stack([*found, *(stepper.step([token] * len(prompts), [True] * len(prompts)) for token in tokens)])


def caches(stepper: Stepper) -> list:
    return [layer for layer in stepper._past["past_key_values"].layers if hasattr(layer, "attended")]


@torch.inference_mode()
@pytest.mark.parametrize("name", SERVED)
def test_a_budget_that_holds_everything_changes_no_bit(name: str) -> None:
    model = lively(name)
    for prompt in prompts_for(name, model):
        plain = continued(Stepper(model), [prompt])
        for policy in SMALL.values():
            kept = Stepper(model, KeyValues(policy, budget=64, block=1))
            assert torch.equal(continued(kept, [prompt]), plain)
            assert caches(kept)
        assert torch.equal(continued(Stepper(model, KeyValues(bits=2, residual=64)), [prompt]), plain)
    assert model.config.get_text_config(decoder=True)._attn_implementation in ("sdpa", "eager")


@torch.inference_mode()
@pytest.mark.parametrize("name", SERVED)
def test_rows_are_evicted_in_every_family_and_the_answer_goes_on(name: str) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    plain = [continued(Stepper(model), [prompt]) for prompt in prompts]
    for policy in SMALL.values():
        keeper = KeyValues(policy, budget=5, block=2)
        together = continued(Stepper(model, keeper), prompts)
        for at, prompt in enumerate(prompts):
            stepper = Stepper(model, keeper)
            found = continued(stepper, [prompt])
            assert found.isfinite().all()
            assert torch.equal(found[:, 0], together[:, at])
            assert all(layer.get_seq_length() in (5, 6) for layer in caches(stepper))
            assert not torch.allclose(found, plain[at])
