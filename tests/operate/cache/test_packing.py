"""Keys and values in few bits: how far from what they were, and how many bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.test_decode import lively, prompts_for

from gossamer.engine.stepping import Stepper, bytes_of
from gossamer.operate.cache import POLICIES, KeyValues
from gossamer.operate.cache.packing import Grid, Packed


@settings(max_examples=150)
@given(
    bits=st.sampled_from([8, 4, 2]),
    group=st.integers(1, 40),
    scale=st.floats(-6, 4.5),
    offset=st.floats(-3e4, 3e4),
    seed=st.integers(0, 9999),
)
def test_every_number_comes_back_within_half_a_step(bits: int, group: int, scale: float, offset: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    numbers = (torch.randn(2, 3, 5, group, generator=generator) * 10**scale + offset).clamp(-65000, 65000)
    grid = Grid.of(numbers, bits)
    back = grid.numbers()
    assert back.shape == numbers.shape
    assert grid.codes.shape[-1] == -(-group * bits // 8)
    half = grid.step.float()[..., None] / 2
    assert ((back - numbers).abs() <= half * 1.001 + numbers.abs() * 1e-6).all()
    width = numbers.amax(-1) - numbers.amin(-1)
    largest = numbers.abs().amax(-1)
    assert (grid.step.float() <= (width * 1.005 + largest * 0.004) / (2**bits - 1) + 1e-6).all()


def test_numbers_beyond_16_bit_floats_are_cut() -> None:
    back = Grid.of(torch.tensor([[[[1e9, -1e9, 0.0, 5.0]]]]), 8).numbers()
    assert back.isfinite().all()
    assert back.abs().max() < 66000


def test_keys_have_a_grid_for_each_channel_and_values_for_each_token() -> None:
    keys, values = torch.randn(1, 2, 64, 16), torch.randn(1, 2, 64, 16)
    keys[..., 3] *= 1000  # one channel is large in all tokens
    values[:, :, 7] *= 1000  # one token in all channels
    packed = Packed.of(keys, values, 4, 32)
    assert packed.rows == 64
    back = packed.whole(torch.float32)
    others = [channel for channel in range(16) if channel != 3]
    assert (back[0] - keys)[..., others].abs().max() < 0.3
    tokens = [token for token in range(64) if token != 7]
    assert (back[1] - values)[:, :, tokens].abs().max() < 0.3
    more = packed.then(Packed.of(keys, values, 4, 32))
    assert more.rows == 128
    assert torch.equal(more.whole(torch.float32)[0], torch.cat([back[0], back[0]], 2))
    assert torch.equal(more.first(32, 32).whole(torch.float32)[1], back[1][:, :, :32])


def held(model, keeper: KeyValues | None, ids: torch.Tensor) -> int:
    stepper = Stepper(model, keeper)
    stepper.prefill([{"input_ids": ids}])
    stepper.step([5], [True])
    assert stepper.cache_bytes == bytes_of(stepper._past)
    return stepper.cache_bytes


@torch.inference_mode()
def test_the_bytes_held_are_those_of_the_budget_and_the_bits() -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=256, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 96, (1, 512), generator=torch.Generator().manual_seed(0))
    row = 2 * 2 * 2 * 64 * 4  # layers, heads, keys and values, channels, bytes
    assert held(model, None, ids) == 513 * row
    streaming = POLICIES["streaming"]()
    assert held(model, KeyValues(streaming, budget=100), ids) == 101 * row
    heavy = held(model, KeyValues(POLICIES["h2o"](), budget=100), ids)
    assert heavy == 101 * row + 2 * 2 * 101 * 4  # and the sums
    snap = held(model, KeyValues(POLICIES["snapkv"](window=8), budget=100, block=4), ids)
    assert snap == 101 * row + 2 * 4 * 5 * 64 * 4  # and the queries that will be in the next window, at 104 rows
    assert held(model, KeyValues(POLICIES["snapkv"](window=8), budget=100), ids) == 101 * row
    for bits in (8, 4, 2):
        packed = held(model, KeyValues(bits=bits, residual=32), ids)
        grids = 480 * row // 4 // 32 * 4  # two 16-bit floats for 32 numbers
        assert packed == 480 * row * bits // 32 + grids + 33 * row
        both = held(model, KeyValues(streaming, budget=128, bits=bits, residual=32), ids)
        assert both == 96 * row * bits // 32 + 96 * row // 4 // 32 * 4 + 33 * row


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma2", "llava", "qwen2_vl", "smolvlm", "mixtral"])
@pytest.mark.parametrize("evicts", [False, True])
def test_more_bits_are_nearer_to_all_of_them(name: str, evicts: bool) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    policy = POLICIES["streaming"](sinks=2) if evicts else None
    tokens = torch.tensor([[11, 40, 7], [65, 8, 9]])[: len(prompts)]

    def logits(bits: int | None) -> torch.Tensor:
        keeper = KeyValues(policy, budget=8, block=2, bits=bits, group=4, residual=1)
        stepper = Stepper(model, keeper)
        stepper.prefill(prompts)
        return stepper.extend(tokens)

    exact = logits(None)
    errors = [float((logits(bits) - exact).abs().mean()) for bits in (8, 4, 2)]
    assert errors == sorted(errors)
    assert 0 < errors[0] < 0.2 * errors[2]
