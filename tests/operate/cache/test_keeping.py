"""Caches that keep less: the same as all where all fits, and what goes where it does not."""

import pytest
import torch
import transformers
from tests.engine.test_decode import WRITERS, lively, prompts_for
from tests.models.tiny import build

from gossamer.core.errors import DataError, ModelError, SettingError
from gossamer.engine.decode import Request, decode
from gossamer.engine.stepping import Stepper
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


@torch.inference_mode()
def test_layers_with_a_window_stay_as_they_are() -> None:
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Gemma3TextConfig(
        vocab_size=96, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, head_dim=4,
        num_key_value_heads=2, sliding_window=8, layer_types=kinds, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Gemma3ForCausalLM(config).eval()
    prompt = {"input_ids": torch.arange(3, 33)[None]}
    stepper = Stepper(model, KeyValues(SMALL["streaming"], budget=5, block=2))
    assert continued(stepper, [prompt]).isfinite().all()
    assert [layer.keys.shape[2] for layer in stepper._past["past_key_values"].layers] == [7, 5, 7]
    plain = continued(Stepper(model), [prompt])
    assert torch.equal(continued(Stepper(model, KeyValues(SMALL["h2o"], budget=64)), [prompt]), plain)


def test_what_has_no_keys_and_values_is_refused() -> None:
    for name, why in (
        ("rwkv", "state of fixed size"),
        ("mamba", "state of fixed size"),
        ("whisper", "encoder's output"),
        ("mistral", "a window or a state"),
    ):
        model = build(name)
        for keeper in (KeyValues(SMALL["h2o"], budget=5), KeyValues(bits=8)):
            with pytest.raises(ModelError, match=why):
                written_with(model, prompts_for(name, model)[0], keeper)
    padded = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(DataError, match="padding"):
        written_with(build("llama"), padded, KeyValues(bits=8))


def written_with(model, prompt, keeper: KeyValues) -> list[int]:
    request = Request(prompt, max_new_tokens=4)
    return [event.token for event in decode(model, [request], stepper_of=lambda each: Stepper(each, keeper))]


def test_attention_of_another_kind_is_refused_and_put_back() -> None:
    model = build("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match="flex_attention"):
        written_with(model, {"input_ids": torch.arange(3, 30)[None]}, KeyValues(SMALL["h2o"], budget=5))
    model.config._attn_implementation = "sdpa"
    model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written_with(model, {"input_ids": torch.arange(3, 30)[None]}, KeyValues(SMALL["h2o"], budget=5))
    assert model.config._attn_implementation == "sdpa"


def test_settings_from_text() -> None:
    parsed = KeyValues.parse("snapkv:budget=256,bits=8,window=16,positions=rerotate,pyramid=0.5")
    assert parsed == KeyValues(POLICIES["snapkv"](window=16), 256, pyramid=0.5, bits=8, positions="rerotate")
    assert parsed.described["policy"] == {"name": "snapkv", "window": 16, "pool": 5}
    assert KeyValues.parse("full") == KeyValues()
    assert KeyValues.parse("full:bits=4,residual=0").described == {
        "policy": {"name": "full"}, "budget": 512, "block": 32, "pyramid": 0.0, "bits": 4, "group": 32, "residual": 0,
        "positions": "keep",
    }  # fmt: skip
    for wrong, why in {
        "snap": "--kv 'snap' is not known: give full, h2o",
        "h2o:window=3": "no setting 'window': it takes budget",
        "h2o:budget": "budget='' is not possible: give a whole number",
        "h2o:budget=x": "give a whole number",
        "h2o:heavy=1.5": "heavy 1.5",
        "snapkv:pool=2": "odd",
        "snapkv:window=0": "window 0",
        "streaming:sinks=-1": "sinks -1",
        "full:bits=3": "8, 4 or 2",
        "full:budget=9": "evicts nothing",
        "full:positions=rerotate": "nothing moves",
        "h2o:positions=there": "keep or rerotate",
        "h2o:budget=0": "budget 0",
        "h2o:block=0": "block 0",
        "h2o:pyramid=1": "pyramid 1.0",
        "full:group=0": "group 0",
        "full:residual=-1": "residual -1",
    }.items():
        with pytest.raises(SettingError) as error:
            KeyValues.parse(wrong)
        assert why in str(error.value)


@pytest.mark.parametrize(
    "text", ["streaming:budget=3", "snapkv:budget=31", "scissorhands:budget=9", "snapkv:budget=40,pyramid=0.9"]
)
def test_a_budget_below_what_always_stays_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"rows in a layer is too small: .* always keeps the first \d+ and the"):
        written_with(build("llama"), {"input_ids": torch.arange(3, 30)[None]}, KeyValues.parse(text))
