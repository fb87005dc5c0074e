"""Several tokens at once and the way back: the same logits as token after token, whatever was read in between."""

import pytest
import torch
from tests.engine.test_decode import WRITERS, lively, prompts_for

from gossamer.core.errors import ModelError
from gossamer.engine.stepping import Stepper

STATES = ("rwkv", "mamba")  # their past is a state that has no way back
TOKENS = torch.tensor([[11, 40, 7, 65, 23], [31, 5, 77, 8, 50]])


def stepped(stepper: Stepper, tokens: torch.Tensor) -> torch.Tensor:
    return torch.stack([stepper.step(column, [True] * len(column)) for column in tokens.T.tolist()], 1)


@torch.inference_mode()
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_extend_and_rewind_are_as_if_read_one_by_one(name: str, together: bool) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)[: 2 if together else 1]
    tokens = TOKENS[: len(prompts)]
    plain, other = Stepper(model), Stepper(model)
    assert torch.equal(plain.prefill(prompts), other.prefill(prompts))
    expected = stepped(plain, tokens)
    if name in STATES:
        torch.testing.assert_close(other.extend(tokens), expected)
        with pytest.raises(ModelError, match="go back"):
            other.rewind(1)
        return
    for wrong, right in ((3, 2), (1, 0), (2, 2), (1, 1)):  # Gemma's windows of 8 are passed on the way
        done = other._mask.shape[1] - _length(prompts)
        junk = torch.cat([tokens[:, done : done + right], tokens.flip(1)[:, :wrong]], 1)
        found = other.extend(junk)
        torch.testing.assert_close(found[:, :right], expected[:, done : done + right], rtol=1e-4, atol=1e-4)
        other.rewind(wrong)
    assert other._mask.shape[1] == _length(prompts) + tokens.shape[1]
    end = torch.full((len(prompts), 1), 17)
    torch.testing.assert_close(stepped(other, end), stepped(plain, end), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", [name for name in WRITERS if name not in STATES])
def test_a_fork_that_went_astray_leaves_no_trace(name: str) -> None:
    model = lively(name)
    prompt = prompts_for(name, model)[0]
    plain, forked = Stepper(model), Stepper(model)
    for stepper in (plain, forked):
        stepper.prefill([prompt])
    for at in (0, 2):  # Gemma's windows of 8 are passed on the way
        expected = stepped(plain, TOKENS[:1, at : at + 2])
        forked.select([0, 0])
        drafts = torch.cat([TOKENS[:, at : at + 2].flip(0), TOKENS[:, 3:4]], 1)
        torch.testing.assert_close(forked.extend(drafts)[1:, :2], expected, rtol=1e-4, atol=1e-4)
        forked.rewind(1)
        forked.select([1])
    end = torch.tensor([[17]])
    torch.testing.assert_close(forked.extend(end), stepped(plain, end), rtol=1e-4, atol=1e-4)


def _length(prompts: list[dict[str, torch.Tensor]]) -> int:
    return max(prompt.get("decoder_input_ids", prompt.get("input_ids")).shape[1] for prompt in prompts)


@torch.inference_mode()
def test_a_window_that_has_moved_on_is_not_rewound_wrongly() -> None:
    stepper = Stepper(lively("gemma3"))  # windows of 8
    stepper.prefill([{"input_ids": torch.arange(3, 15)[None]}])
    with pytest.raises(ModelError, match="window of 8"):
        stepper.rewind(1)
    stepper.extend(torch.tensor([[5, 6, 7]]))
    stepper.rewind(1)
    with pytest.raises(ModelError, match="window of 8"):
        stepper.rewind(1)
    with pytest.raises(ValueError, match="14 of 14"):
        stepper.rewind(14)


@torch.inference_mode()
def test_a_convolution_goes_back_over_what_was_extended_and_no_further() -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.Lfm2Config(
        vocab_size=80, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    model = transformers.Lfm2ForCausalLM(config).eval()
    ids = torch.arange(3, 15)[None]
    plain, other = Stepper(model), Stepper(model)
    plain.prefill([{"input_ids": ids}])
    other.prefill([{"input_ids": ids}])
    with pytest.raises(ModelError, match="no longer holds what came 2 tokens ago"):
        other.rewind(2)
    other.extend(TOKENS[:1])
    other.rewind(4)
    end = torch.tensor([[17]])
    plain.extend(TOKENS[:1, :1])
    torch.testing.assert_close(other.extend(end), plain.extend(end), rtol=1e-4, atol=1e-4)
