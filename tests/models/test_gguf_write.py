"""GGUF files: block formats against the gguf package's own reader, whole models and tokenizers read back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from gossamer.core.errors import ModelError
from gossamer.models.checkpoint import save_compressed
from gossamer.models.gguf import gguf_tokenizer, read_gguf
from gossamer.models.gguf_blocks import Encoded, encode, encode_dense
from gossamer.models.gguf_vocabulary import vocabulary_of
from gossamer.models.gguf_write import ARCHITECTURES, read_back, write_gguf
from gossamer.models.open import Opened, open_model
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.stored_codes import stored_codes

TEXTS = ("The cat sat, didn't it?", "12 345  red balls\n\nnaïve café 日本語", "  spaces before", "")


def on_grid(
    scheme: Scheme, rows: int, columns: int, seed: int, reach: tuple[int, int] | None = None
) -> QuantizedTensor:
    """Random codes and scales of both signs and many magnitudes; codes within `reach` where given."""
    random = torch.Generator().manual_seed(seed)
    low, high = reach or (scheme.low, scheme.high)
    groups = scheme.groups(columns)
    codes = torch.randint(low, high + 1, (rows, columns), generator=random).to(torch.int8)
    codes[0, :2] = torch.tensor([low, high])
    size = torch.exp2(torch.randint(-12, 3, (rows, groups), generator=random).float())
    scales = (size * (1 + torch.rand(rows, groups, generator=random))).half()
    scales *= torch.where(torch.rand(rows, groups, generator=random) < 0.3, -1, 1).half()
    zeros = None
    if not scheme.symmetric:
        zeros = torch.randint(scheme.low, scheme.high + 1, (rows, groups), generator=random).to(torch.int8)
    return QuantizedTensor(scheme, (rows, columns), codes, scales, zeros)


# ------------------------------------------------------------------------------------------------ block formats

SYMMETRIC = [
    (2, 32, "Q4_0", 18 / 32), (3, 96, "Q4_0", 18 / 32), (4, None, "Q4_0", 18 / 32),
    (2, None, "Q2_K", 84 / 256), (3, 256, "Q3_K", 110 / 256),
    (5, 64, "Q5_0", 22 / 32), (5, None, "Q5_0", 22 / 32),
    (6, None, "Q6_K", 210 / 256), (6, 32, "Q8_0", 34 / 32), (7, 128, "Q8_0", 34 / 32), (8, None, "Q8_0", 34 / 32),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "group", "kind", "bytes_per_weight"), SYMMETRIC)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**20), rows=st.integers(1, 5))
def test_symmetric_grids_are_kept_bit_for_bit(
    bits: int, group: int | None, kind: str, bytes_per_weight: float, seed: int, rows: int
) -> None:
    tensor = on_grid(Scheme(bits, group), rows, 768, seed)
    encoded = encode(tensor)
    assert encoded is not None
    assert (encoded.kind, encoded.exact) == (kind, True)
    assert encoded.data.nbytes == rows * 768 * bytes_per_weight
    assert torch.equal(encoded.decoded(), tensor.dequantize())


@settings(max_examples=40)
@given(seed=st.integers(0, 2**20), bits=st.integers(2, 7), whole=st.booleans())
def test_grids_with_zero_points_are_exact_or_round_the_least_value_only(seed: int, bits: int, whole: bool) -> None:
    tensor = on_grid(Scheme(bits, None if whole else 32, symmetric=False), 3, 256, seed)
    encoded = encode(tensor)
    assert encoded is not None
    found, wanted = encoded.decoded(), tensor.dequantize()
    if encoded.exact:
        assert torch.equal(found, wanted)
    assert encoded.exact or encoded.kind in ("Q4_1", "Q5_1")
    step = tensor.scales.float().abs().repeat_interleave(256 // tensor.scales.shape[1], 1)
    levels = tensor.scheme.high - tensor.scheme.low
    assert bool(((found - wanted).abs() <= step * levels * 2**-11).all())  # half a unit of 11 bits, of the least value


@pytest.mark.parametrize(("bits", "kind", "high"), [(4, "Q4_1", 15), (5, "Q5_1", 31)])
def test_the_codes_of_shifted_blocks_are_kept(bits: int, kind: str, high: int) -> None:
    """Unit scales and small zero points round nothing, so the steps can be read off."""
    scheme = Scheme(bits, 32, symmetric=False)
    codes = torch.arange(scheme.low, scheme.high + 1, dtype=torch.int8).repeat(4)[:64].reshape(1, 64)
    zeros = torch.tensor([[scheme.low, scheme.high]], dtype=torch.int8)
    tensor = QuantizedTensor(scheme, (1, 64), codes, torch.ones(1, 2).half(), zeros)
    encoded = encode(tensor)
    assert encoded is not None
    assert (encoded.kind, encoded.exact) == (kind, True)
    assert torch.equal(encoded.decoded(), tensor.dequantize())
    assert float(encoded.decoded()[0, :32].max()) == high


def test_the_smallest_format_that_holds_the_codes_is_taken() -> None:
    """What counts is how far the codes reach, not how many bits were allowed."""
    for bits, reach, kind in (
        (8, (-8, 7), "Q4_0"),
        (5, (-8, 7), "Q4_0"),
        (8, (-16, 15), "Q5_0"),
        (8, (-17, 0), "Q8_0"),
    ):
        encoded = encode(on_grid(Scheme(bits, 32), 2, 64, 0, reach))
        assert encoded is not None
        assert encoded.kind == kind
    three = encode(on_grid(Scheme(3, 32, symmetric=False), 2, 64, 0))
    assert three is not None
    assert (three.kind, three.exact) == ("Q4_0", True)  # at most 7 steps off the zero point


def test_grids_without_a_format_are_left_to_their_values() -> None:
    assert encode(on_grid(Scheme(4, 16), 2, 64, 0)) is None
    assert encode(on_grid(Scheme(4, 48), 2, 96, 0)) is None
    assert encode(on_grid(Scheme(4, None), 2, 40, 0)) is None
    assert encode(on_grid(Scheme(4, 16, symmetric=False), 2, 64, 0)) is None
    far = QuantizedTensor(
        Scheme(8, 32, symmetric=False), (1, 32), torch.full((1, 32), 127, dtype=torch.int8),
        torch.ones(1, 1).half(), torch.tensor([[-128]], dtype=torch.int8),
    )  # fmt: skip
    assert encode(far) is None


@settings(max_examples=30)
@given(seed=st.integers(0, 2**20), kind=st.sampled_from(["F16", "BF16", "F32", "wide", "rounded"]))
def test_dense_values_take_the_type_that_holds_them(seed: int, kind: str) -> None:
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) + 1e-3
    if kind == "F16":
        values = values.half().float()
    elif kind == "BF16":
        values = torch.cat([values, torch.full((1, 64), 2.0**-30)]).bfloat16().float()
    elif kind == "F32":
        values = values[0]
    elif kind == "wide":
        values = values * 1e6
    encoded: Encoded = encode_dense(values)
    assert encoded.kind == {"wide": "BF16", "rounded": "F16"}.get(kind, kind)
    assert encoded.exact == (kind in ("F16", "BF16", "F32"))
    assert torch.allclose(encoded.decoded(), values, rtol=2**-8 if kind == "wide" else 2**-10, atol=1e-7)
    assert not encoded.exact or torch.equal(encoded.decoded(), values)


# --------------------------------------------------------------------------------------------------- tokenizers


def byte_level(cut: Any, whole: bool = False) -> Any:
    """A small byte-level tokenizer that was trained on a few words."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat sat on the mat and didn't eat 12 345 red balls"] * 9, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    build: Any = PreTrainedTokenizerFast
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return build(
        tokenizer_object=tokenizer,
        bos_token="<|end|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=template,
    )


def sentencepiece() -> Any:
    """A small tokenizer of Llama 2's kind: bytes for what it does not know, a space in front, `<s>` first."""
    from transformers import LlamaTokenizer

    pieces = ["▁", "t", "h", "e", "c", "a", "s", ",", "▁t", "he", "▁the", "at", "▁c", "▁cat", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [("h", "e"), ("▁", "t"), ("▁t", "he"), ("a", "t"), ("▁", "c"), ("▁c", "at"), ("▁", "▁")]
    build: Any = LlamaTokenizer
    return build(vocab={token: index for index, token in enumerate(tokens)}, merges=merges, add_bos_token=True)


def plain_cut() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def digits_cut() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain_cut()])


def expression_cut(name: str) -> Any:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CUTS = {
    "gpt-2": (plain_cut, False),
    "smollm": (digits_cut, False),
    "llama-bpe": (lambda: expression_cut("llama-bpe"), True),
    "smaug-bpe": (lambda: expression_cut("llama-bpe"), False),
    "qwen2": (lambda: expression_cut("qwen2"), False),
}


@pytest.mark.parametrize("split", CUTS)
def test_a_byte_level_tokenizer_is_read_back_as_it_was(tmp_path: Path, split: str) -> None:
    cut, whole = CUTS[split]
    tokenizer = byte_level(cut(), whole)
    opened = with_tokenizer(llama(), tokenizer)
    write_gguf(opened, {}, tmp_path / "model.gguf")
    assert read_gguf(tmp_path / "model.gguf").split == split
    again = gguf_tokenizer(tmp_path / "model.gguf")
    assert again is not None
    for text in (*TEXTS, "<|end|>of <think>it"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"], text
    assert (again.eos_token, again.pad_token) == ("<|end|>", "<|pad|>")
    assert again.chat_template == tokenizer.chat_template


def test_a_sentencepiece_tokenizer_is_read_back_as_it_was(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    opened = with_tokenizer(llama(), tokenizer)
    write_gguf(opened, {}, tmp_path / "model.gguf")
    again = gguf_tokenizer(tmp_path / "model.gguf")
    assert again is not None
    for text in ("the cat, the hat", "at  the", "é"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1
        assert again(text)["input_ids"] == ids, text


def test_token_types_and_scores_are_what_llama_cpp_expects() -> None:
    from gguf import TokenType

    found = vocabulary_of(sentencepiece(), 300)
    kinds = dict(zip(found.tokens, found.types, strict=True))
    assert kinds["<unk>"] == TokenType.UNKNOWN
    assert kinds["<s>"] == TokenType.CONTROL
    assert kinds["<0x0A>"] == TokenType.BYTE
    assert kinds["▁the"] == TokenType.NORMAL
    assert kinds["[PAD299]"] == TokenType.UNUSED
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert scores["he"] > scores["▁the"] > scores["▁cat"] > scores["t"]  # the order of the merges, single ones last
    assert found.space
    assert found.special.add_special_token["bos"]
    assert not found.special.add_special_token["eos"]
    plain = vocabulary_of(byte_level(plain_cut()), 400)
    kinds = dict(zip(plain.tokens, plain.types, strict=True))
    assert (kinds["<|end|>"], kinds["<think>"]) == (TokenType.CONTROL, TokenType.USER_DEFINED)
    assert plain.special.merges
    assert not plain.scores


def test_tokenizers_that_llama_cpp_has_no_name_for_are_refused() -> None:
    from transformers import PreTrainedTokenizerFast

    build: Any = PreTrainedTokenizerFast
    words = build(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ModelError, match="kind WordLevel: GGUF export takes pair encodings"):
        vocabulary_of(words, 64)
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x+"), "isolated"), plain_cut()])
    with pytest.raises(ModelError, match=r"\(Split, ByteLevel\) other than llama.cpp's gpt-2, smollm, llama-bpe"):
        vocabulary_of(byte_level(cut), 400)
    with pytest.raises(ModelError, match=r"has \d+ tokens, the model's embedding only 64 rows"):
        vocabulary_of(byte_level(plain_cut()), 64)


# ------------------------------------------------------------------------------------------------------- models

SIZES: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 128}),
    "gemma2": ("Gemma2", {"head_dim": 256}),
    "gemma3_text": ("Gemma3", {"head_dim": 256}),
}


def build(kind: str, **settings: Any) -> torch.nn.Module:
    """A random model with norms and biases that are not what they start as."""
    import transformers

    name, own = MODELS[kind]
    config = getattr(transformers, f"{name}{'Text' if kind == 'gemma3_text' else ''}Config")
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(transformers, f"{name}ForCausalLM")(config(**{**SIZES, **own, **settings}))
    for parameter in model.parameters():
        scale = 0.1 if parameter.dim() == 1 else 0.02
        parameter.data = (parameter.data + scale * torch.randn(parameter.shape)).half().float()
    return model.eval().requires_grad_(False)


def llama() -> torch.nn.Module:
    return build("llama")


def with_tokenizer(model: Any, tokenizer: Any) -> Opened:
    from gossamer.models.structure import hierarchy_of

    return Opened(model, hierarchy_of(model, model.config), model.config, "here/tiny", "sha256:0", tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_computes_the_same_when_read_back(tmp_path: Path, kind: str) -> None:
    opened = with_tokenizer(build(kind), byte_level(plain_cut()))
    ids = torch.tensor([[5, 300, 17, 2, 99, 40]])
    before = opened.model(ids).logits
    written = write_gguf(opened, {}, tmp_path / "model.gguf")
    after = read_back(tmp_path / "model.gguf", opened)(ids).logits.detach()
    assert torch.equal(opened.model(ids).logits, after)
    assert float((after - before).abs().max()) < 1e-5  # norms of Gemma are stored with 1 added
    assert written.notes == ()
    assert set(written.types) == {"F16", "F32"}
    assert ("output.weight" in {tensor.name for tensor in read_gguf(tmp_path / "model.gguf").tensors}) == (
        not opened.config.tie_word_embeddings
    )


def test_codes_of_a_checkpoint_are_those_that_were_saved_and_reach_the_file(tmp_path: Path) -> None:
    opened = with_tokenizer(llama(), byte_level(plain_cut()))
    schemes = {
        "self_attn.q_proj": Scheme(4, 32), "self_attn.k_proj": Scheme(3, 32), "self_attn.v_proj": Scheme(5, None),
        "self_attn.o_proj": Scheme(4, 32, symmetric=False), "mlp.gate_proj": Scheme(8, None),
        "mlp.down_proj": Scheme(4, 24), "embed_tokens": Scheme(8, None),
    }  # fmt: skip
    tensors: dict[str, QuantizedTensor] = {}
    modules: dict[str, QuantizedTensor] = {}
    for layer in opened.hierarchy.layers():
        scheme = next((scheme for name, scheme in schemes.items() if layer.module.endswith(name)), None)
        if scheme is not None:
            tensors[layer.path] = on_grid(scheme, layer.rows, layer.columns, len(tensors))
            modules[f"{layer.module}.weight"] = tensors[layer.path]
    save_compressed(opened, tensors, tmp_path / "small")
    small = open_model(str(tmp_path / "small"))
    found = stored_codes(tmp_path / "small")
    assert found.keys() == modules.keys()
    for name, tensor in found.items():
        assert tensor.scheme == modules[name].scheme
        assert torch.equal(tensor.codes, modules[name].codes)
        assert torch.equal(tensor.dequantize(), modules[name].dequantize())
    written = write_gguf(small, found, tmp_path / "small.gguf")
    again = dict(read_back(tmp_path / "small.gguf", small).named_parameters())
    kept = ("q_proj", "k_proj", "v_proj", "gate_proj", "embed_tokens")
    for name, tensor in modules.items():
        assert torch.equal(again[name], tensor.dequantize()) == (name.split(".")[-2] in kept), name
    assert [note.partition(":")[0] for note in written.notes] == [
        "model.layers.0.mlp.down_proj.weight and 1 more", "model.layers.0.self_attn.o_proj.weight and 1 more",
    ]  # fmt: skip
    kinds = {tensor.name: tensor.dtype for tensor in read_gguf(tmp_path / "small.gguf").tensors}
    assert kinds["blk.0.attn_k.weight"] == "Q4_0"
    assert kinds["blk.1.attn_v.weight"] == "Q5_0"
    assert kinds["blk.1.attn_output.weight"] == "Q4_1"
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"


def test_a_dense_checkpoint_holds_no_codes(tmp_path: Path) -> None:
    model: Any = llama()
    model.save_pretrained(tmp_path)
    assert stored_codes(tmp_path) == {}


def test_codes_in_other_forms_are_left_out(tmp_path: Path) -> None:
    """Scales that 16-bit floats do not hold, and groups of float codes, as other tools write them."""
    from safetensors.torch import load_file, save_file

    opened = with_tokenizer(llama(), None)
    layer = next(layer for layer in opened.hierarchy.layers() if layer.module.endswith("q_proj"))
    save_compressed(opened, {layer.path: on_grid(Scheme(4, 32), layer.rows, layer.columns, 0)}, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    name = f"{layer.module}.weight_scale"
    save_file({**state, name: state[name].float() * 1.0001}, file, metadata={"format": "pt"})
    assert stored_codes(tmp_path) == {}
    save_file(state, file, metadata={"format": "pt"})
    assert len(stored_codes(tmp_path)) == 1
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["type"] = "float"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stored_codes(tmp_path) == {}


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "has rope_parameters",
        ),
        ("mistral", {"sliding_window": 16}, "has sliding_window 16, but its GGUF file would be read with None"),
        ("qwen3", {"head_dim": 32}, "has head_dim 32, but its GGUF file would be read with 128"),
        ("gemma2", {"final_logit_softcapping": 5.0}, "has final_logit_softcapping 5.0"),
        ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32}, "has query_pre_attn_scalar 32"),
    ],
)
def test_settings_that_the_file_cannot_say_are_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], said: str
) -> None:
    opened = with_tokenizer(build(kind, **settings), byte_level(plain_cut()))
    write_gguf(opened, {}, tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=said) as caught:
        read_back(tmp_path / "model.gguf", opened)
    assert "\n" not in str(caught.value)


def test_other_models_and_stray_tensors_are_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tiny: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=400))
    with pytest.raises(ModelError, match="of type gpt2: GGUF export takes llama, mistral, qwen2, qwen3"):
        write_gguf(with_tokenizer(tiny, byte_level(plain_cut())), {}, tmp_path / "model.gguf")
    narrow = with_tokenizer(build("gemma3_text", head_dim=32), byte_level(plain_cut()))
    with pytest.raises(ModelError, match=r"query_pre_attn_scalar 256, llama\.cpp scales attention by head_dim, 32"):
        write_gguf(narrow, {}, tmp_path / "model.gguf")
    model: Any = llama()
    model.model.register_parameter("stray", torch.nn.Parameter(torch.ones(4, 4)))
    with pytest.raises(ModelError, match=r"no place for tensor model\.stray"):
        write_gguf(with_tokenizer(model, byte_level(plain_cut())), {}, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())
