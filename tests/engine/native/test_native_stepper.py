"""The native decoder against transformers' modules: every family it serves, every way of reading."""

import pytest
import torch
from tests.engine.native import emulated
from tests.engine.test_decode import WRITERS, lively, prompts_for
from tests.models.tiny import build

from gossamer.core.errors import DataError, ModelError
from gossamer.engine.native.library import Engine
from gossamer.engine.native.lower import FUSIONS, HIDDEN, LOGITS, NotServedError, lower
from gossamer.engine.native.stepper import NativeStepper, Precision
from gossamer.engine.stepping import Stepper
from gossamer.models.low_rank import LowRank
from gossamer.models.packed import QuantizedTensor, Scheme

REFUSED = ("whisper", "rwkv", "mamba", "qwen3_vl")
SERVED = tuple(name for name in WRITERS if name not in REFUSED)
EXACT = Precision(exact=True, half_cache=False)


def native(model: torch.nn.Module, precision: Precision = EXACT, **settings) -> NativeStepper:
    return NativeStepper(lower(model, **{"dtype": torch.float32, **settings}), model, Engine(2), precision)


def text_prompts(model, *lengths: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    top = model.config.get_text_config().vocab_size
    return [{"input_ids": torch.randint(0, top, (1, length), generator=generator)} for length in lengths]


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


@torch.inference_mode()
@pytest.mark.parametrize("name", SERVED)
def test_logits_are_those_of_transformers(name: str) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    oracle, mine = Stepper(model), native(model)
    expected = oracle.prefill(prompts)
    close(mine.prefill(prompts), expected)
    for _ in range(4):
        tokens = expected.argmax(-1).tolist()
        expected = oracle.step(tokens, [True] * 2)
        close(mine.step(tokens, [True] * 2), expected)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gemma3", "qwen2_vl", "mistral"])
def test_default_precision_differs_by_its_rounding(name: str) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    expected = Stepper(model).prefill(prompts)
    close(native(model, Precision(), dtype=None).prefill(prompts), expected, 2e-2)


@torch.inference_mode()
@pytest.mark.skipif(not emulated.AT_HAND, reason="no compiler and emulator for ARM: make tools")
@pytest.mark.parametrize("isa", ["neon", pytest.param("generic", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2", "qwen2_moe", "qwen3"])
def test_logits_on_arm_are_those_of_transformers(name: str, isa: str) -> None:
    """Every kind of step, compiled for ARM; the cache in float32 and, to its rounding, in float16."""
    model = lively(name)
    prompts = prompts_for(name, model)
    for precision, tolerance in ((EXACT, 1e-5), (Precision(), 5e-3)):
        oracle = Stepper(model)
        mine = NativeStepper(lower(model, dtype=torch.float32), model, emulated.Emulated(2, isa), precision)
        expected = oracle.prefill(prompts)
        close(mine.prefill(prompts), expected, tolerance)
        tokens = expected.argmax(-1).tolist()
        close(mine.step(tokens, [True] * 2), oracle.step(tokens, [True] * 2), tolerance)


@pytest.mark.parametrize("name", REFUSED)
def test_other_decoders_are_refused_with_what_is_served(name: str) -> None:
    with pytest.raises(NotServedError, match=r"native engine .*it serves Llama"):
        lower(build(name))


@torch.inference_mode()
def test_weights_stay_on_their_grids() -> None:
    model = lively("qwen2")
    model.lm_head.weight = torch.nn.Parameter(
        model.lm_head.weight.clone(), requires_grad=False
    )  # two grids, two weights
    codes = {}
    for bits, (name, module) in enumerate(model.named_modules()):
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            scheme = Scheme(2 + bits % 7, [None, 8, 16][bits % 3], bits % 2 == 0).fitted(module.weight.shape[1])
            shape = (module.weight.shape[0], scheme.groups(module.weight.shape[1]))
            grouped = module.weight.reshape(*shape, -1).abs().amax(-1)
            zeros = None if scheme.symmetric else torch.ones(shape, dtype=torch.int8)
            tensor = QuantizedTensor.encode(
                module.weight, scheme, (grouped / scheme.high).clamp(min=1e-4).half(), zeros
            )
            module.weight.copy_(tensor.dequantize())
            codes[f"{name}.weight"] = tensor
    prompts = text_prompts(model, 4, 11)
    oracle, mine = Stepper(model), native(model, codes=codes, dtype=None)
    close(mine.prefill(prompts), oracle.prefill(prompts), 1e-3)
    close(mine.step([3, 4], [True] * 2), oracle.step([3, 4], [True] * 2), 1e-3)
    assert lower(model, codes).weight_bytes < 0.5 * lower(model).weight_bytes


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gemma2", "llama"])
def test_low_rank_matrices_run_beside_their_weights(name: str) -> None:
    model = lively(name)
    low_ranks = {}
    for number, (path, module) in enumerate(model.named_modules()):
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and number % 3:
            factors = (torch.randn(size) / 4 for size in ((module.weight.shape[0], 5), (5, module.weight.shape[1])))
            low_ranks[path] = LowRank(*(factor.half() for factor in factors))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    mine = native(model, low_ranks=low_ranks)
    for path, matrix in low_ranks.items():
        model.get_submodule(path).weight.add_(matrix.dense())
    prompts = text_prompts(model, 6, 2)
    close(mine.prefill(prompts), Stepper(model).prefill(prompts), 1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("fusion", [None, *sorted(FUSIONS)])
def test_every_fusion_computes_the_same(fusion: str | None) -> None:
    model = lively("qwen3")
    prompts = text_prompts(model, 20)
    fused = native(model).prefill(prompts)
    close(native(model, fusions=FUSIONS - {fusion} if fusion else frozenset()).prefill(prompts), fused, 1e-6)


@torch.inference_mode()
def test_dropped_blocks_and_other_widths_run_as_they_are() -> None:
    model = lively("llama")
    del model.model.layers[1]
    mlp = model.model.layers[0].mlp
    for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        weight = getattr(mlp, name).weight.narrow(dim, 0, 20)
        setattr(mlp, name, torch.nn.Linear(*weight.shape[::-1], bias=False))
        getattr(mlp, name).weight.data = weight.contiguous()
    prompts = text_prompts(model, 7)
    close(native(model).prefill(prompts), model(**prompts[0]).logits[:, -1])


@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 3])
def test_experts_that_get_all_tokens_or_none(threads: int) -> None:
    model = lively("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.weight[0] = 50 * layer.mlp.gate.weight[1]  # first or last of all, by the token
        layer.mlp.gate.weight[3] = layer.mlp.gate.weight[0]
    prompts = text_prompts(model, 70, 3, 1)
    oracle = Stepper(model)
    mine = NativeStepper(lower(model, dtype=torch.float32), model, Engine(threads), EXACT)
    close(mine.prefill(prompts), oracle.prefill(prompts))
    close(mine.step([3, 4, 5], [True] * 3), oracle.step([3, 4, 5], [True] * 3))


@torch.inference_mode()
def test_a_router_that_is_no_number_gives_none_and_breaks_nothing() -> None:
    model = lively("mixtral")
    model.model.layers[0].mlp.gate.weight[:] = float("nan")
    (prompt,) = text_prompts(model, 300)
    assert bool(native(model).prefill([prompt]).isnan().all())


@torch.inference_mode()
@pytest.mark.parametrize("precision", [EXACT, Precision()])
def test_many_tokens_at_once_are_as_one_by_one(precision: Precision, monkeypatch) -> None:
    model = lively("mistral")
    (prompt,) = text_prompts(model, 70)
    whole = native(model, precision).prefill([prompt])
    monkeypatch.setattr("gossamer.engine.native.stepper.MOST_ROWS", 32)
    close(native(model, precision).prefill([prompt]), whole, 1e-6 if precision is EXACT else 1e-2)
    one = native(model, precision)
    one.prefill([{"input_ids": prompt["input_ids"][:, :3]}])
    for token in prompt["input_ids"][0, 3:].tolist():
        last = one.step([token], [True])
    close(last, whole, 1e-6 if precision is EXACT else 1e-2)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2_moe", "qwen2_vl"])
def test_extend_and_rewind(name: str) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    plain = native(model, Precision())
    plain.prefill(prompts)
    tokens = torch.tensor([[4, 9, 2], [7, 1, 1]])
    steps = torch.stack([plain.step(column.tolist(), [True] * 2) for column in tokens.T], 1)
    mine = native(model, Precision())
    mine.prefill(prompts)
    mine.extend(torch.tensor([[3, 3, 3, 3], [8, 8, 8, 8]]))
    mine.rewind(4)
    assert torch.equal(mine.extend(tokens), steps)
    mine.rewind(1)
    assert torch.equal(mine.step([2, 1], [True] * 2), steps[:, 2])
    with pytest.raises(ModelError, match="cannot forget 99 tokens"):
        mine.rewind(99)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "qwen2_vl"])
def test_one_that_is_taken_out_goes_back_and_on_alone(name: str) -> None:
    model = lively(name)
    prompts = prompts_for(name, model)
    mine, other, alone = (native(model, Precision()) for _ in range(3))
    mine.prefill(prompts)
    other.prefill(prompts)
    alone.prefill(prompts[1:])
    mine.extend(torch.tensor([[7, 8], [50, 51]]))
    one = mine.taken(1)
    one.rewind(2)
    mine.rewind(2)
    tokens = torch.arange(90)[None] % 50  # more than a block of places
    assert torch.equal(one.resume(tokens[:, :9]), alone.extend(tokens[:, :9])[:, -1])
    close(one.resume(tokens), alone.extend(tokens)[:, -1], 2e-2)
    assert torch.equal(mine.step([3, 4], [True] * 2), other.step([3, 4], [True] * 2))
    mine.join(one)
    found, expected = mine.step([3, 4, 5], [True] * 3), other.step([3, 4], [True] * 2)
    assert torch.equal(found[:2], expected)
    close(found[2:], alone.step([5], [True]), 2e-2)


@torch.inference_mode()
def test_sequences_leave_fork_and_join() -> None:
    model = lively("llama")
    prompts = text_prompts(model, 5, 9, 3)
    alone = []
    for prompt in prompts:
        stepper = native(model, Precision())
        stepper.prefill([prompt])
        alone.append([stepper.step([token], [True])[0] for token in (1, 2, 3)])
    mine, late = native(model, Precision()), native(model, Precision())
    mine.prefill(prompts[:2])
    assert torch.equal(torch.stack([alone[0][0], alone[1][0]]), mine.step([1, 1], [True] * 2))
    late.prefill(prompts[2:])
    late.step([1], [True])
    mine.join(late)
    assert torch.equal(torch.stack([each[1] for each in alone]), mine.step([2, 2, 2], [True] * 3))
    mine.select([2, 0, 2])
    found = mine.step([3, 3, 3], [True] * 3)
    assert torch.equal(torch.stack([alone[2][2], alone[0][2], alone[2][2]]), found)


@torch.inference_mode()
def test_what_a_mask_hides_is_not_read() -> None:
    model = lively("llama")
    (prompt,) = text_prompts(model, 6)
    padded = {
        "input_ids": torch.nn.functional.pad(prompt["input_ids"], (3, 0)),
        "attention_mask": torch.tensor([[0] * 3 + [1] * 6]),
    }
    assert torch.equal(native(model).prefill([padded]), native(model).prefill([prompt]))
    close(native(model).prefill([padded]), Stepper(model).prefill([padded]))


@torch.inference_mode()
def test_tokens_outside_the_table_are_refused() -> None:
    model = lively("llama")
    stepper = native(model)
    stepper.prefill(text_prompts(model, 4))
    for token in (-1, model.config.vocab_size):
        with pytest.raises(DataError, match="not in the model's table"):
            stepper.step([token], [True])


@torch.inference_mode()
def test_a_stepper_reads_fewer_prompts_anew_and_is_joined() -> None:
    model = lively("llama")
    prompts = text_prompts(model, 5, 6, 7)
    used, late = native(model, Precision()), native(model, Precision())
    used.prefill(prompts)
    used.prefill(prompts[1:2])
    late.prefill(prompts[2:])
    used.join(late)
    fresh = native(model, Precision())
    fresh.prefill(prompts[1:])
    assert torch.equal(used.step([1, 2], [True] * 2), fresh.step([1, 2], [True] * 2))


@torch.inference_mode()
def test_logits_have_room_for_the_rows_that_are_asked_for() -> None:
    model = lively("llama")
    stepper = native(model)
    stepper.prefill(text_prompts(model, 90))
    assert len(stepper._buffers[HIDDEN]) == 96
    assert len(stepper._buffers[LOGITS]) == 32


@torch.inference_mode()
def test_ended_sequences_do_not_move() -> None:
    model = lively("llama")
    prompts = text_prompts(model, 5, 6)
    mine, alone = native(model, Precision()), native(model, Precision())
    mine.prefill(prompts)
    alone.prefill(prompts[1:])
    mine.step([1, 1], [False, True])
    alone.step([1], [True])
    assert torch.equal(mine.step([5, 2], [True, True])[1:], alone.step([2], [True]))
    assert mine.cache_bytes > 0
