"""GGUF files of Llama-type models, written here with the gguf package."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.core.errors import ModelError
from gossamer.models.inspect import inspect
from gossamer.models.open import open_model

HEADS, KV_HEADS, WIDTH = 4, 2, 32
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


def write(path: Path, model: torch.nn.Module, quantised: bool) -> None:
    """Writes `model`, its matrices as Q8_0 if `quantised`. Query and key rows lie in GGUF's interleaved order."""
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
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"<t{index}>".encode() for index in range(61))])
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
        if quantised and array.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{target}.weight", quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{target}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_float_file_gives_the_same_outputs(tmp_path: Path) -> None:
    model = llama()
    write(tmp_path / "model.gguf", model, quantised=False)
    opened = open_model(str(tmp_path / "model.gguf"))
    inputs = torch.tensor([[1, 5, 9, 33, 60]])
    with torch.no_grad():
        assert torch.allclose(opened.model(inputs).logits, model(inputs).logits, atol=1e-6)
    assert opened.hierarchy.parameters == model.num_parameters()
    assert opened.stored_bytes == 4 * opened.hierarchy.parameters


def test_a_quantised_file_opens_dense_and_can_be_saved(tmp_path: Path) -> None:
    model = llama()
    write(tmp_path / "model.gguf", model, quantised=True)
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
    write(path, llama(), quantised=False)
    content = path.read_bytes()
    for damaged, said in [(b"nothing", "is not a GGUF file"), (content[:200], "damaged"), (content[:-4000], "damaged")]:
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=said) as caught:
            open_model(str(path))
        assert "\n" not in str(caught.value)
