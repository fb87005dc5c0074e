"""Where kept rows stand: at their true positions, or closed up; one layer, so that keys say only what they are of."""

from typing import Any

import pytest
import torch
import transformers
from tests.engine.test_decode import lively, prompts_for, written
from tests.models.tiny import build

from gossamer.core.errors import DataError, ModelError, SettingError
from gossamer.engine.decode import Request, decode
from gossamer.engine.stepping import Stepper
from gossamer.operate.cache import POLICIES, KeyValues

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
FAMILIES = {
    "Llama": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Phi": {"partial_rotary_factor": 0.5},
    "Cohere": {},  # turns neighbouring channels
    "Glm": {"head_dim": 8, "partial_rotary_factor": 0.5},
    "Mixtral": {},
    "Qwen2": {"rope_parameters": YARN, "sliding_window": None},
}
IDS = torch.randint(3, 96, (1, 48), generator=torch.Generator().manual_seed(2))


def tiny(family: str, **more: Any):
    torch.manual_seed(4)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family], **more})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, weight in model.named_parameters():
        if "attn" in name and weight.ndim == 2:
            weight.data *= 8
    return model


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["keep", "rerotate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_suffix_is_the_same_wherever_it_stands(family: str, positions: Any) -> None:
    model = tiny(family)
    suffix = 12
    window = POLICIES["streaming"](sinks=0)
    stepper = Stepper(model, KeyValues(window, budget=suffix, block=20, positions=positions))
    stepper.prefill([{"input_ids": IDS[:, :40]}])  # 28 are evicted
    fresh = Stepper(model)
    fresh.prefill([{"input_ids": IDS[:, 40 - suffix : 40]}])
    layers = [each._past["past_key_values"].layers[0] for each in (stepper, fresh)]
    assert layers[0].get_seq_length() == suffix
    same = torch.allclose(layers[0].keys, layers[1].keys, rtol=1e-4, atol=1e-4)
    assert same == (positions == "rerotate")
    for part in (IDS[:, 40:41], IDS[:, 41:45], IDS[:, 45:46]):
        torch.testing.assert_close(stepper.extend(part), fresh.extend(part), rtol=1e-4, atol=1e-4)
    assert int(stepper._positions[0, -1]) == (45 if positions == "keep" else suffix + 5)


@torch.inference_mode()
def test_heads_and_layers_close_up_each_for_itself() -> None:
    """With rows that differ between heads: every key is the one of its token at its new place."""
    model = tiny("Llama", num_hidden_layers=2)
    rule = POLICIES["h2o"](heavy=0.5)
    stepper = Stepper(model, KeyValues(rule, budget=10, block=6, pyramid=0.4, positions="rerotate"))
    kept = Stepper(model, KeyValues(rule, budget=10, block=6, pyramid=0.4))
    for each in (stepper, kept):
        each.prefill([{"input_ids": IDS[:, :30]}])
    moved, true = (each._past["past_key_values"].layers for each in (stepper, kept))
    assert [layer.get_seq_length() for layer in moved] == [14, 6]
    plain = Stepper(model)
    plain.prefill([{"input_ids": IDS[:, :30]}])
    angles = model.model.rotary_emb
    turn = transformers.models.llama.modeling_llama.apply_rotary_pos_emb
    for at, layer in enumerate(plain._past["past_key_values"].layers):
        rows = true[at].get_seq_length()
        for head in range(2):
            everything = layer.keys[0, head]
            places = [int((everything - key).abs().sum(1).argmin()) for key in true[at].keys[0, head]]
            assert places == sorted(places)
            back = torch.tensor([places]) * -1
            raw = turn(everything[None, None, places], everything[None, None, places], *angles(everything, back))[1]
            there = torch.arange(14 - rows, 14)[None]
            torch.testing.assert_close(
                moved[at].keys[0, head], turn(raw, raw, *angles(raw, there))[1][0, 0], rtol=1e-4, atol=1e-4
            )
    assert int(stepper._positions[0, -1]) + 1 == 14


@torch.inference_mode()
@pytest.mark.parametrize("policy", [POLICIES["streaming"](), POLICIES["snapkv"](window=4, pool=3), POLICIES["h2o"]()])
def test_a_text_goes_on_far_past_the_context(policy: Any) -> None:
    model = tiny("Llama", num_hidden_layers=2)  # a context of 64
    seen = []
    model.model.rotary_emb.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    keeper = KeyValues(policy, budget=20, block=8, positions="rerotate")
    prompt = torch.randint(3, 96, (1, 150), generator=torch.Generator().manual_seed(1))
    request = Request({"input_ids": prompt}, max_new_tokens=120, eos=frozenset())
    events = list(decode(model, [request], stepper_of=lambda each: Stepper(each, keeper)))
    assert len(events) == 120
    assert events[-1].finished == "length"
    assert max(seen) < 64
    with pytest.raises(DataError, match="150 tokens"):
        list(decode(model, [request], stepper_of=lambda each: Stepper(each, KeyValues(policy, budget=32))))


@torch.inference_mode()
def test_sinks_and_window_far_past_the_context_are_as_if_read_alone() -> None:
    model = tiny("Llama")
    keeper = KeyValues(POLICIES["streaming"](sinks=3), budget=20, block=8, positions="rerotate")
    ids = torch.randint(3, 96, (1, 260), generator=torch.Generator().manual_seed(1))  # four times the context
    stepper = Stepper(model, keeper)
    stepper.prefill([{"input_ids": ids[:, :250]}])
    logits = [stepper.step([token], [True]) for token in ids[0, 250:].tolist()][-1]
    layer = stepper._past["past_key_values"].layers[0]
    rows = layer.get_seq_length()
    alone = Stepper(model)
    expected = alone.prefill([{"input_ids": torch.cat([ids[:, :3], ids[:, 260 - rows + 3 :]], 1)}])
    torch.testing.assert_close(layer.keys, alone._past["past_key_values"].layers[0].keys, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_images_in_rows_and_columns_keep_their_places(name: str) -> None:
    """After an eviction new tokens come where they would have come without: past the image's rows and columns."""
    model = lively(name)
    prompt = prompts_for(name, model)[1]
    keeper = KeyValues(POLICIES["streaming"](sinks=2), budget=6, block=2)
    plain, kept = Stepper(model), Stepper(model, keeper)
    for stepper in (plain, kept):
        stepper.prefill([prompt])
        stepper.step([11], [True])
    assert plain._positions.shape[0] == 4
    assert torch.equal(plain._positions, kept._positions)
    assert int(plain._positions[0, 0, -1]) > int(plain._positions[1, 0, -1])
    last = [stepper._past["past_key_values"].layers[0].keys[:, :, -4:] for stepper in (plain, kept)]
    assert torch.equal(*last)
    with pytest.raises(ModelError, match=r"height and width.*positions=keep"):
        Stepper(model, KeyValues(POLICIES["streaming"](), budget=8, positions="rerotate")).prefill([prompt])


def test_what_cannot_move_is_refused() -> None:
    streaming = POLICIES["streaming"]()
    keeper = KeyValues(streaming, budget=20, block=8, positions="rerotate")
    prompt = {"input_ids": IDS[:, :20]}
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=96, n_embd=16, n_layer=1, n_head=2)).eval()
    for model, why in (
        (tiny("Llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "stretches"),
        (gpt, "no rotary"),
        (build("gemma2"), "layers of other kinds"),
    ):
        with pytest.raises(ModelError, match=why):
            Stepper(model, keeper).prefill([prompt])
    assert Stepper(gpt, KeyValues(streaming, budget=8, block=2)).prefill([prompt]).shape == (1, 96)
    with pytest.raises(SettingError, match="no room in the model's context of 64"):
        written_with(tiny("Llama"), KeyValues(streaming, budget=60, block=8, positions="rerotate"))
    seen = build("llava")
    image = prompts_for("llava", seen)[0]
    image["input_ids"] = torch.cat([image["input_ids"], torch.full((1, 70), 5)], 1)
    with pytest.raises(DataError, match="with images"):
        list(decode(seen, [Request(image)], stepper_of=lambda each: Stepper(each, keeper)))


def written_with(model, keeper: KeyValues) -> list[int]:
    request = Request({"input_ids": IDS}, max_new_tokens=4)
    return [event.token for event in decode(model, [request], stepper_of=lambda each: Stepper(each, keeper))]


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["keep", "rerotate"])
@pytest.mark.parametrize("bits", [None, 8])
def test_forgetting_the_latest_after_an_eviction(positions: Any, bits: int | None) -> None:
    model = tiny("Llama", num_hidden_layers=2)
    keeper = KeyValues(
        POLICIES["snapkv"](window=6, pool=3), budget=16, block=12, bits=bits, group=8, residual=4, positions=positions
    )
    plain, other = Stepper(model, keeper), Stepper(model, keeper)
    for stepper in (plain, other):
        stepper.prefill([{"input_ids": IDS[:, :30]}])
        stepper.extend(IDS[:, 30:32])
    other.extend(IDS[:, 40:45])
    other.rewind(5)
    for part in (IDS[:, 32:33], IDS[:, 33:36]):
        torch.testing.assert_close(other.extend(part), plain.extend(part), rtol=2e-3, atol=2e-3)
    other.rewind(4)
    with pytest.raises(ModelError, match="evicted some"):
        other.rewind(9)
    both = Stepper(model, keeper)
    both.prefill([{"input_ids": IDS[:, :20]}, {"input_ids": IDS[:, 5:20]}])
    before = both.extend(IDS[:, :4].expand(2, -1))
    both.rewind(4)
    torch.testing.assert_close(both.extend(IDS[:, :4].expand(2, -1)), before, rtol=2e-3, atol=2e-3)


def test_requests_together_are_as_alone() -> None:
    model = lively("llama")
    keeper = KeyValues(POLICIES["snapkv"](window=2, pool=1), budget=5, block=2, positions="rerotate")
    requests = [Request(prompt, max_new_tokens=9, eos=frozenset()) for prompt in prompts_for("llama", model)]
    alone = [list(decode(model, [request], stepper_of=lambda each: Stepper(each, keeper))) for request in requests]
    together = list(decode(model, requests, stepper_of=lambda each: Stepper(each, keeper)))
    for at, events in enumerate(alone):
        assert [event.token for event in together if event.request == at] == [event.token for event in events]
    assert written(model, requests) != [[event.token for event in events] for events in alone]


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["keep", "rerotate"])
def test_sequences_come_and_go(positions: Any) -> None:
    model = tiny("Llama", num_hidden_layers=2)
    keeper = KeyValues(POLICIES["h2o"](), budget=10, block=4, positions=positions)

    def alone(length: int, tokens: list[int]) -> torch.Tensor:
        stepper = Stepper(model, keeper)
        stepper.prefill([{"input_ids": IDS[:, :length]}])
        return torch.cat([stepper.step([token], [True]) for token in tokens])

    batch, other = Stepper(model, keeper), Stepper(model, keeper)
    batch.prefill([{"input_ids": IDS[:, :30]}])
    held = batch.cache_bytes
    batch.select([0, 0])
    assert batch.cache_bytes == 2 * held
    batch.step([4, 5], [True, True])
    other.prefill([{"input_ids": IDS[:, :17]}])
    batch.join(other)
    found = torch.stack([batch.step([6 + row] * 3, [True] * 3) for row in range(9)])
    tokens = list(range(6, 15))
    for row, expected in enumerate((alone(30, [4, *tokens])[1:], alone(30, [5, *tokens])[1:], alone(17, tokens))):
        assert torch.equal(found[:, row], expected)
    batch.select([2])
    assert torch.equal(batch.step([70], [True]), alone(17, [*tokens, 70])[-1:])
