"""Every family that the engine runs: read as the model computes, quantised close to its fake-quantised twin."""

from dataclasses import replace

import pytest
import torch
import transformers as hf
from tests.models.tiny import _TEXT, _TOWER, build

from gossamer.accelerator.golden.tensors import Tally
from gossamer.accelerator.quantize.as_module import AsModule
from gossamer.accelerator.quantize.convert import convert
from gossamer.accelerator.quantize.model import without_gradients
from gossamer.accelerator.quantize.quantize import Quantized, quantize
from gossamer.accelerator.quantize.read import read_model, verify
from gossamer.accelerator.quantize.weights import Precision
from gossamer.core.errors import ModelError
from gossamer.models.open import Opened
from gossamer.models.structure import hierarchy_of

TEXT = ("llama", "mistral", "qwen2", "bert", "roberta")
PIXELS = ("vit", "deit", "clip_tower", "siglip_tower", "clip_projected")
FAMILIES = (*TEXT, *PIXELS, "llava")
UNCHANGED = ("embed", "token", "position", "norm", "Norm")


def model_of(name: str):
    """A tiny model whose layers say something, with biases and gains that are not all zero or one."""
    torch.manual_seed(4)
    towers = {
        "clip_tower": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**_TOWER)),
        "clip_projected": lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**_TOWER, projection_dim=12)),
        "siglip_tower": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**_TOWER, vision_use_head=False)),
    }
    model = towers[name]().eval().requires_grad_(False) if name in towers else build(name, seed=4)
    for path, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif not any(word in path for word in UNCHANGED):
            parameter.mul_(5)
    return model


def opened_of(model) -> Opened:
    return Opened(model, hierarchy_of(model, model.config), model.config, "tiny", "sha256:0")


def examples_for(name: str, count: int = 6) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    found = []
    for number in range(count):
        example = {}
        if name in TEXT or name == "llava":
            example["input_ids"] = torch.randint(3, 80, (9 + number,), generator=generator)
        if name in PIXELS or name == "llava":
            example["pixel_values"] = torch.randn(1, 3, 16, 16, generator=generator)
        if name == "llava":
            example["input_ids"][2:6] = 90
        found.append(example)
    return found


def quantized(name: str, **settings) -> tuple[Quantized, list]:
    examples = examples_for(name)
    return quantize(opened_of(model_of(name)), examples, **settings), examples


@pytest.mark.parametrize("name", FAMILIES)
def test_reading_computes_what_the_model_computes(name: str) -> None:
    opened = opened_of(model_of(name))
    model = read_model(opened)
    for example in examples_for(name):
        verify(model, opened, example)


@pytest.mark.parametrize("name", FAMILIES)
def test_integers_are_as_close_to_the_twin_as_the_twin_to_the_model(name: str) -> None:
    made, examples = quantized(name)
    tally = Tally()
    twin = made.twin()
    apart, lost = 0.0, 0.0
    for example in examples:
        wanted, rounded = made.float_logits(example), twin(example)
        found = made.integer_logits(example, tally=tally).float()
        assert found.shape == wanted.shape
        apart += float((found - rounded).norm() / wanted.norm())
        lost += float((rounded - wanted).norm() / wanted.norm())
    assert lost / len(examples) < 0.12
    assert apart / len(examples) < 0.12
    assert 0 <= tally.share < 0.01


def test_four_bits_lose_more_but_hold_together() -> None:
    made, examples = quantized("llama", precision=Precision(4, 8))
    eight, _ = quantized("llama")
    layer = made.integer.stacks["language"].blocks[0].mlp.up
    assert layer.weight.min() >= -8
    assert layer.weight.max() <= 7
    assert layer.groups is not None
    assert layer.groups.shape == (24, 2)
    assert 1 <= layer.groups.min() <= layer.groups.max() <= 15
    errors = [
        sum(float((each.integer_logits(example).float() - each.float_logits(example)).norm()) for example in examples)
        for each in (eight, made)
    ]
    assert errors[0] < errors[1] < 0.5 * sum(float(made.float_logits(e).norm()) for e in examples)


def test_saturation_is_counted() -> None:
    made, examples = quantized("llama")
    tally = Tally()
    made.integer.run(examples[0], 8, tally)
    usual = tally.share
    narrow = quantized("llama")[0]
    narrow.scales["language"]["blocks.0.attention.value"] /= 16
    stack = convert(narrow.floating.stacks["language"], narrow.scales["language"])
    tally = Tally()
    replace(narrow.integer, stacks={"language": stack}).run(examples[0], 8, tally)
    assert tally.share > usual
    assert tally.worst()[0][0] == "blocks.0.attention.value"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen3", "Qwen3ForCausalLM"), ("gemma", "GemmaForCausalLM"), ("bert_lm", "BertForMaskedLM"),
        ("mamba", "MambaForCausalLM"), ("whisper", "WhisperForConditionalGeneration"),
        ("mixtral", "MixtralForCausalLM"),
    ],
)  # fmt: skip
def test_other_architectures_are_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_model(opened_of(build(name)))


@pytest.mark.parametrize("name", ["clip", "siglip", "owlv2"])
@pytest.mark.parametrize("part", ["vision", "text"])
def test_one_tower_of_two(name: str, part: str) -> None:
    opened = opened_of(model_of(name))
    generator = torch.Generator().manual_seed(2)
    side = 32 if name == "owlv2" else 16
    examples = [
        {"pixel_values": torch.randn(1, 3, side, side, generator=generator)}
        if part == "vision"
        else {"input_ids": torch.randint(3, 80, (8,), generator=generator)}
        for _ in range(6)
    ]
    made = quantize(opened, examples, part=part)
    error = made.integer_logits(examples[0]).float() - made.float_logits(examples[0])
    assert error.norm() < 0.25 * made.float_logits(examples[0]).norm()
    with pytest.raises(ModelError, match="two towers"):
        read_model(opened)


def test_an_operator_inside_a_block_is_refused_by_name() -> None:
    model = build("llama")
    model.model.layers[1].self_attn.q_norm = torch.nn.LayerNorm(4)
    with pytest.raises(ModelError, match=r"self_attn\.q_norm \(LayerNorm\) of LlamaDecoderLayer"):
        read_model(opened_of(model))
    model = build("llama")
    model.model.layers[0].mlp.act_fn = torch.nn.Softplus()
    with pytest.raises(ModelError, match="Softplus"):
        read_model(opened_of(model))
    model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**_TOWER))
    with pytest.raises(ModelError, match="SiglipMultiheadAttentionPoolingHead"):
        read_model(opened_of(model))


def test_what_modules_do_not_show_is_found_out() -> None:
    """A block whose code does something else with the same modules."""
    model = model_of("llama")
    block = model.model.layers[0]
    inner = block.mlp.forward
    block.mlp.forward = lambda x: inner(x) * 1.5
    with pytest.raises(ModelError, match="not read from its modules"):
        quantize(opened_of(model), examples_for("llama"))


@pytest.mark.parametrize("name", ["llama", "llava", "vit"])
def test_tasks_judge_them_as_modules(name: str) -> None:
    """A padded batch gives every row what it gives alone."""
    made, examples = quantized(name)
    batch, widths = {}, [len(example.get("input_ids", ())) for example in examples[:2]]
    if "input_ids" in examples[0]:
        rows = [
            torch.nn.functional.pad(e["input_ids"], (max(widths) - n, 0))
            for e, n in zip(examples[:2], widths, strict=True)
        ]
        batch["input_ids"] = torch.stack(rows)
        batch["attention_mask"] = torch.stack([torch.arange(max(widths)) >= max(widths) - n for n in widths]).long()
    if "pixel_values" in examples[0]:
        batch["pixel_values"] = torch.cat([example["pixel_values"] for example in examples[:2]])
    module = AsModule(made.integer_logits)
    found = module(**batch).logits
    for row, example, width in zip(found, examples[:2], widths, strict=True):
        assert torch.equal(row[-width:] if width else row, made.integer_logits(example).float())
    with pytest.raises(ValueError, match="padding"):
        module(input_ids=torch.ones(1, 3), attention_mask=torch.ones(1, 1, 3, 3))


def test_positions_are_limited() -> None:
    opened = opened_of(model_of("llama"))
    assert read_model(opened, 20).stacks["language"].blocks[0].attention.rotary[0].shape == (20, 2)
    with pytest.raises(ModelError, match="65 positions"):
        read_model(opened, 65)


def test_scaled_rotary_angles_keep_the_models_scores() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT, rope_parameters=yarn)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(4)
    opened = opened_of(model)
    example = examples_for("llama")[0]
    read = read_model(opened)
    verify(read, opened, example)
    assert float(without_gradients(read, example).abs().max()) > 0
