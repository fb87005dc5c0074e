"""Codes of GGUF files: bit by bit what the gguf package unpacks, and what the native engine computes with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.test_gguf import find_real, llama, write

from gossamer.engine.native import abi
from gossamer.engine.native.running import open_native
from gossamer.engine.native.stepper import Precision
from gossamer.models.gguf_codes import ShiftedTensor, decoded, gguf_codes
from gossamer.models.open import open_model

KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
EXACT = Precision(exact=True, half_cache=False)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(rows=st.integers(1, 9), blocks=st.integers(1, 4), seed=st.integers(0, 2**20), flat=st.booleans())
def test_codes_stand_for_what_the_gguf_package_unpacks(kind, rows, blocks, seed, flat) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    generator = np.random.default_rng(seed)
    values = (generator.standard_normal((rows, 32 * blocks)) * np.exp(generator.uniform(-6, 3))).astype(np.float32)
    values[0, :32] = 0.5 if flat else 0  # a block of one value has no scale
    type_ = GGMLQuantizationType[kind]
    data = quantize(values, type_)
    codes = decoded(np.array(data), kind, values.shape)
    assert isinstance(codes, ShiftedTensor) == kind.endswith("_1")
    np.testing.assert_array_equal(codes.dequantize().numpy(), dequantize(data, type_))


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_are_read_as_the_gguf_package_reads_them(kind: str) -> None:
    """Codes that no rounding gives: every bit pattern beside scales of both signs."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    type_ = GGMLQuantizationType[kind]
    size, generator = GGML_QUANT_SIZES[type_][1], np.random.default_rng(0)
    data = generator.integers(0, 256, (64, 3, size), dtype=np.uint8)
    for at in range(0, 4 if kind.endswith("_1") else 2, 2):
        data[..., at : at + 2] = generator.normal(size=(64, 3, 1)).astype(np.float16).view(np.uint8)
    data = data.reshape(64, -1)
    found = decoded(data, kind, (64, 96)).dequantize().numpy()
    np.testing.assert_array_equal(found, dequantize(data, type_))


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_runs_on_its_codes(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write(file, llama(), quantised=kind)
    dense = open_model(str(file))
    codes = gguf_codes(file, dense.model)
    matrices = [name for name, each in dense.model.named_parameters() if each.dim() == 2]
    assert sorted(codes) == sorted(matrices)  # queries and keys in the order of the model's rows
    for name in matrices:
        assert torch.equal(codes[name].dequantize(), dense.model.get_parameter(name))
    opened, native = open_native(str(file), EXACT)
    assert {each.struct.kind for each in native._weights.values()} == {abi.MatrixKind.PACKED}
    ids = torch.tensor([[1, 5, 9, 33, 60, 2, 7, 11, 21, 50, 3, 3, 40, 41, 8, 19, 25]])
    expected = dense.model(ids).logits[0]
    mine = native(opened.model)
    close = {"rtol": 0, "atol": 2e-4 * float(expected.abs().max())}
    torch.testing.assert_close(mine.prefill([{"input_ids": ids[:, :3]}])[0], expected[2], **close)
    torch.testing.assert_close(mine.extend(ids[:, 3:])[0], expected[3:], **close)
    brief = native(opened.model)
    brief._precision = Precision()
    coarse = {"rtol": 0, "atol": 2e-2 * float(expected.abs().max())}
    torch.testing.assert_close(brief.prefill([{"input_ids": ids}])[0], expected[-1], **coarse)


def test_tied_weights_are_held_once(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    write(file, model, quantised="Q4_1", without="output.weight")
    opened, native = open_native(str(file))
    assert native._weights["lm_head.weight"] is native._weights["model.embed_tokens.weight"]
    assert native.bytes_per_token == native.weight_bytes
    assert opened.file == file


def test_floats_and_other_formats_are_left_to_be_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write(file, llama())
    assert gguf_codes(file, open_model(str(file)).model) == {}
    other = open_model(str(file)).model
    write(file, llama(), quantised="Q8_0")
    assert gguf_codes(file, other) == {}  # the values of another model


@pytest.mark.slow
def test_a_real_file_runs_on_its_codes(tmp_path: Path) -> None:
    path = find_real(tmp_path)
    opened, native = open_native(str(path))
    assert native.weight_bytes < 97_000_000
    ids = opened.tokenizer("In 1889 the Eiffel Tower was built in the city of", return_tensors="pt")["input_ids"]
    best = native(opened.model).prefill([{"input_ids": ids}])[0].argmax()
    assert opened.tokenizer.decode(best) == " Paris"
