"""Checkpoints opened for the native engine: nothing unpacked, the same answers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.feeds import inputs_for
from tests.models.tiny import build

from gossamer.core.errors import ModelError
from gossamer.engine.native.lower import NotServedError, decoder_of, mixtures_of
from gossamer.engine.native.running import open_native
from gossamer.engine.native.stepper import Precision
from gossamer.engine.stepping import Stepper
from gossamer.models.adapter import write_adapter
from gossamer.models.checkpoint import save_compressed
from gossamer.models.inputs import round_inputs
from gossamer.models.low_rank import LowRank
from gossamer.models.open import Opened, open_model
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.stored_codes import stored_codes
from gossamer.models.structure import hierarchy_of, read_matrix
from gossamer.operate.speculate.self_draft import first_blocks
from gossamer.search.jobs import apply_job

EXACT = Precision(exact=True, half_cache=False)


def written(name: str, directory: Path) -> None:
    """A tiny model at 4 bits, groups of 8, with a matrix of rank 1 to 3 beside every second layer."""
    model = build(name)
    opened = Opened(model, hierarchy_of(model, model.config), model.config, name, "sha256:" + "0" * 64)
    draw = torch.Generator().manual_seed(1)
    tensors, matrices = {}, {}
    for number, layer in enumerate(opened.hierarchy.layers()):
        if layer.kind == "linear":
            matrix = read_matrix(opened.model, layer).float()
            scales = (matrix.reshape(layer.rows, -1, 8).abs().amax(-1) / 7.5).clamp(min=1e-4).half()
            tensors[layer.path] = QuantizedTensor.encode(matrix, Scheme(4, 8), scales)
        if number % 2:
            factors = ((layer.rows, 1 + number % 3), (1 + number % 3, layer.columns))
            left, right = (0.3 * torch.randn(shape, generator=draw).half() for shape in factors)
            matrices[layer.path] = layer, LowRank(left, right)
    save_compressed(opened, tensors, directory)
    write_adapter(matrices, directory, "acme/tiny")


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "llava", "qwen2_vl"])
def test_a_checkpoint_of_codes_and_low_ranks_runs_without_its_floats(name: str, tmp_path: Path) -> None:
    written(name, tmp_path)
    dense = open_model(str(tmp_path)).model
    both = inputs_for(name, dense)
    count = both["input_ids"].shape[0]
    prompt = {key: value.chunk(count)[0] for key, value in both.items()}
    opened, native = open_native(str(tmp_path), EXACT)
    kept = sum(parameter.nbytes for parameter in opened.model.get_decoder().parameters())
    assert kept < 0.1 * sum(parameter.nbytes for parameter in dense.get_decoder().parameters())
    mine, oracle = native(opened.model), Stepper(dense)
    expected = oracle.prefill([prompt])
    torch.testing.assert_close(mine.prefill([prompt]), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))
    expected = oracle.step([7], [True])
    torch.testing.assert_close(mine.step([7], [True]), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@torch.inference_mode()
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_keep_the_codes_of_the_checkpoint(name: str, bits: int, tmp_path: Path) -> None:
    model = build(name)
    opened = Opened(model, hierarchy_of(model, model.config), model.config, name, "sha256:" + "0" * 64)
    tensors = {}
    for layer in opened.hierarchy.layers():
        if (layer.kind == "linear" or layer.index is not None) and "blocks" in layer.path:
            matrix = read_matrix(model, layer).float()
            scheme = Scheme(bits, 4)
            scales = (matrix.reshape(layer.rows, -1, 4).abs().amax(-1) / scheme.high).clamp(min=1e-4).half()
            tensors[layer.path] = QuantizedTensor.encode(matrix, scheme, scales)
    save_compressed(opened, tensors, tmp_path / "out")
    dense = open_model(str(tmp_path / "out")).model
    outline, native = open_native(str(tmp_path / "out"), EXACT)
    tokens = torch.randint(1, 90, (2, 23), generator=torch.Generator().manual_seed(3))
    for mine, whole in ((outline.model, dense), (first_blocks(outline.model, 1), first_blocks(dense, 1))):
        found, expected = (make(model).prefill([{"input_ids": row[None]} for row in tokens])
                           for make, model in ((native, mine), (Stepper, whole)))  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    program = native(outline.model)._program
    codes = sum(tensors[layer.path].bytes for layer in opened.hierarchy.layers() if layer.index is not None)
    assert sum(program.weights[name].bytes for name in program.shares) < 1.5 * codes  # filled up to tiles of 16 rows
    stacks = [stack for experts in mixtures_of(decoder_of(outline.model)) for stack in experts.parameters()]
    assert stacks
    assert all(stack.device.type == "meta" for stack in stacks)
    assert native.bytes_per_token < native.weight_bytes


@torch.inference_mode()
def test_embedded_models_run_as_in_torch() -> None:
    opened, native = open_native("tiny-lm", EXACT)
    oracle = open_model("tiny-lm")
    prompt = {"input_ids": torch.tensor([oracle.tokenizer("It was the best of times")["input_ids"]])}
    expected = Stepper(oracle.model).prefill([prompt])
    found = native(opened.model).prefill([prompt])
    assert float((found - expected).abs().max()) < 2e-2  # the 16-bit weights of the file, rounded as they are stored
    assert opened.fingerprint == oracle.fingerprint


@torch.inference_mode()
@pytest.mark.parametrize(
    "preset",
    [
        "rtn-w8a8",
        "rtn-w8a8s",
        "rtn-w4g64a8",
        "rtn-fp8+activations-fp8",
        "rtn-fp8+activations-fp8s",
        "rtn-mxfp4+activations-mxfp4",
        "rtn-nvfp4+activations-nvfp4",
    ],
)
def test_rounded_inputs_are_those_of_torch(preset: str, tmp_path: Path) -> None:
    """By the logits of each of 40 tokens: a difference in the last bit now and then moves an input to the next number,
    and through more blocks that spreads to all that follow, in torch as well. Weights of fp8 are kept in 16 bits."""
    apply_job(preset, "tiny-lm", tmp_path / "out")
    opened, native = open_native(str(tmp_path / "out"), EXACT)
    blocks = [first_blocks(model, 1) for model in (open_model(str(tmp_path / "out")).model, opened.model)]
    steppers = Stepper(blocks[0]), native(blocks[1])
    for stepper in steppers:
        stepper.prefill([{"input_ids": torch.arange(2)[None]}])
    rounded, found = (stepper.extend(torch.arange(5, 45)[None])[0] for stepper in steppers)
    for module in blocks[0].modules():
        round_inputs(module, None)
    free = Stepper(blocks[0])
    free.prefill([{"input_ids": torch.arange(2)[None]}])
    size = (free.extend(torch.arange(5, 45)[None])[0] - rounded).norm(dim=-1)
    error = (found - rounded).norm(dim=-1) / size
    assert float(error.median()) < (0.1 if "fp8" in preset else 1e-3)


@torch.inference_mode()
def test_the_first_blocks_alone_share_the_weights() -> None:
    opened, native = open_native("tiny-lm", EXACT)
    dense = open_model("tiny-lm").model
    prompt = {"input_ids": torch.arange(5, 12)[None]}
    expected = Stepper(first_blocks(dense, 2)).prefill([prompt])
    found = native(first_blocks(opened.model, 2)).prefill([prompt])
    assert float((found - expected).abs().max()) < 2e-2
    whole = native(opened.model).prefill([prompt])
    assert float((whole - Stepper(dense).prefill([prompt])).abs().max()) < 2e-2


@torch.inference_mode()
def test_twins_share_programs_and_strangers_are_refused() -> None:
    opened, native = open_native("tiny-lm", EXACT)
    programs = {id(native(first_blocks(opened.model, 2))._program) for _ in range(3)}
    assert len(programs) == 1
    with pytest.raises(NotServedError, match="another model"):
        native(open_model("tiny-lm-draft").model)


def test_tensors_that_are_missing_are_said(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.0.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing .* first model\.layers\.0\.mlp\.up_proj"):
        open_native(str(tmp_path))


@pytest.mark.parametrize("name", ["llama", "llava", "qwen2_vl"])
def test_codes_of_a_checkpoint_are_found_by_the_models_names(name: str, tmp_path: Path) -> None:
    written(name, tmp_path)
    model = build(name)
    wanted = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert stored_codes(tmp_path).keys() == wanted


def test_what_the_engine_does_not_run_is_refused_before_its_weights_are_taken() -> None:
    with pytest.raises(NotServedError, match="native engine"):
        open_native("tiny-ovd")
    with pytest.raises(ModelError, match="does not exist"):
        open_native("no-such-model")
