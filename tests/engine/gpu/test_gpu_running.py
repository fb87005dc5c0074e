"""Checkpoints opened for a GPU: codes stay packed, the answers are those of the dense model."""

from pathlib import Path

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import build

from gossamer.core.errors import DeviceError, SettingError
from gossamer.engine.decode import Request, decode
from gossamer.engine.gpu.captured import Captured
from gossamer.engine.gpu.layers import PackedEmbedding, PackedLinear, pack_layers
from gossamer.engine.gpu.running import open_gpu
from gossamer.engine.stepping import Stepper
from gossamer.models.adapter import read_adapter, write_adapter
from gossamer.models.checkpoint import save_compressed
from gossamer.models.low_rank import LowRank
from gossamer.models.open import Opened, open_model, open_packed
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.structure import hierarchy_of, read_matrix
from gossamer.operate.speculate.decode import Speculation
from gossamer.operate.speculate.lookup import PromptLookup
from gossamer.operate.speculate.self_draft import SelfDraft
from gossamer.operate.writer import open_writer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def written(name: str, directory: Path) -> None:
    """A tiny model whose layers lie on grids of 2 to 8 bits, with a matrix of rank 1 to 3 beside every second one."""
    model = build(name)
    opened = Opened(model, hierarchy_of(model, model.config), model.config, name, "sha256:" + "0" * 64)
    draw = torch.Generator().manual_seed(1)
    tensors, matrices = {}, {}
    for number, layer in enumerate(opened.hierarchy.layers()):
        if layer.kind == "linear":
            matrix = read_matrix(opened.model, layer).float()
            bits = 2 + number % 7
            scales = (matrix.reshape(layer.rows, -1, 8).abs().amax(-1) / (2 ** (bits - 1) - 0.5)).clamp(min=1e-4)
            tensors[layer.path] = QuantizedTensor.encode(matrix, Scheme(bits, 8), scales.half())
        if number % 2:
            factors = ((layer.rows, 1 + number % 3), (1 + number % 3, layer.columns))
            left, right = (0.3 * torch.randn(shape, generator=draw).half() for shape in factors)
            matrices[layer.path] = layer, LowRank(left, right)
    save_compressed(opened, tensors, directory)
    write_adapter(matrices, directory, "acme/tiny")


@torch.inference_mode()
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["llama", "llava", "qwen2_vl"])
def test_a_checkpoint_of_codes_and_low_ranks_stays_packed(name: str, device: str, tmp_path: Path) -> None:
    written(name, tmp_path)
    dense = open_model(str(tmp_path)).model
    both = inputs_for(name, dense)
    count = both["input_ids"].shape[0]
    prompt = {key: value.chunk(count)[0] for key, value in both.items()}
    packed = open_packed(str(tmp_path)).model
    report = pack_layers(packed, read_adapter(tmp_path), torch.float32, torch.device(device))
    layers = [module for module in packed.modules() if isinstance(module, (PackedLinear, PackedEmbedding))]
    assert len(layers) == report.packed > 10
    assert 0 < report.widened < report.packed
    assert not any(hasattr(layer, "weight") for layer in layers)
    loose = 3e-2 if device == "cuda" else 1e-3  # products in bfloat16
    mine, oracle = Captured(packed)(packed), Stepper(dense)
    expected = oracle.prefill([prompt])
    bound = loose * float(expected.abs().max())
    torch.testing.assert_close(mine.prefill([prompt]).cpu(), expected, rtol=0, atol=bound)
    for token in (7, 8):
        expected = oracle.step([token], [True])
        torch.testing.assert_close(mine.step([token], [True]).cpu(), expected, rtol=0, atol=bound)


@torch.inference_mode()
@pytest.mark.parametrize("device", DEVICES)
def test_an_embedded_model_writes_sixteen_bit_floats(device: str) -> None:
    opened, captured, report = open_gpu("tiny-lm", torch.device(device))
    assert {parameter.dtype for parameter in opened.model.parameters()} == {torch.bfloat16}
    assert opened.model.get_decoder().rotary_emb.inv_freq.dtype == torch.float32
    assert report.weight_bytes > 0
    oracle = open_model("tiny-lm")
    prompt = {"input_ids": torch.tensor([oracle.tokenizer("It was the best of times")["input_ids"]])}
    expected = Stepper(oracle.model).prefill([prompt])
    found = captured(opened.model).prefill([prompt])
    assert float((found.cpu() - expected).abs().max() / expected.abs().max()) < 3e-2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("drafter", [PromptLookup(), SelfDraft(1)])
def test_verified_drafts_are_what_plain_steps_write(device: str, drafter: PromptLookup | SelfDraft) -> None:
    model = build("llama").to(device)
    request = Request({"input_ids": torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])}, max_new_tokens=16)
    plain = [event.token for event in decode(model, [request], stepper_of=Captured(model))]
    drafted = Speculation(drafter, 3, 1).decode(model, request, stepper_of=Captured(model))
    assert [event.token for event in drafted] == plain


def test_what_a_gpu_cannot_do_is_said_before_anything_is_opened() -> None:
    with pytest.raises(SettingError, match="native engine computes on the processor"):
        open_writer("no-such-model", "native", "cuda")
    with pytest.raises(DeviceError, match="cannot compute on 'meta'"):
        open_writer("no-such-model", "auto", "meta")


def test_the_writer_says_what_became_of_the_layers() -> None:
    writer = open_writer("tiny-lm", "auto", "cpu:0")
    assert writer.engine["name"] == "gpu"
    assert writer.engine["floats"] == "bfloat16"
    assert open_writer("tiny-lm", "torch", "cpu:0").engine == {"name": "torch", "device": "cpu:0", "floats": "bfloat16"}
