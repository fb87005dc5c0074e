"""Opening models from every kind of reference, and refusing what is none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import build, run

from gossamer.core.errors import ModelError
from gossamer.models.embedded import embedded_models, known_configs
from gossamer.models.open import open_model

KNOWN_SIZES = {"llama-3-8b": 8_030_261_248, "mistral-7b-v0.1": 7_241_732_096, "qwen3-8b": 8_190_735_360}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    build("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", KNOWN_SIZES)
def test_well_known_configs_have_the_published_size(name: str) -> None:
    assert name in known_configs()
    opened = open_model(name, weights=False)
    assert opened.hierarchy.parameters == KNOWN_SIZES[name]
    assert next(opened.model.parameters()).is_meta
    assert opened.file is None


@pytest.mark.skipif("tiny-lm" not in embedded_models(), reason="tiny-lm is not trained yet")
def test_an_embedded_model_opens_with_its_tokenizer() -> None:
    opened = open_model("tiny-lm")
    assert opened.defaults["task"] == "text"
    assert opened.tokenizer("It was")["input_ids"]
    assert all(tensor.dtype == torch.float32 for tensor in opened.model.parameters())
    assert opened.stored_bytes == 2 * opened.hierarchy.parameters


def test_the_fingerprint_follows_content_and_not_layout(saved: Path, tmp_path: Path) -> None:
    first = open_model(str(saved))
    build("llama").save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert open_model(str(tmp_path / "sharded")).fingerprint == first.fingerprint
    assert first.fingerprint.startswith("sha256:")
    assert len(first.fingerprint) == 71
    build("llama", seed=1).save_pretrained(tmp_path / "other")
    assert open_model(str(tmp_path / "other")).fingerprint != first.fingerprint
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert open_model(str(saved)).fingerprint != first.fingerprint


def test_an_opened_and_saved_model_keeps_its_fingerprint(saved: Path, tmp_path: Path) -> None:
    first = open_model(str(saved))
    first.model.save_pretrained(tmp_path / "again")
    assert open_model(str(tmp_path / "again")).fingerprint == first.fingerprint


def test_sixteen_bit_weights_are_opened_as_float32(tmp_path: Path) -> None:
    build("llama").half().save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    assert all(tensor.dtype == torch.float32 for tensor in opened.model.parameters())
    assert opened.stored_bytes == 2 * opened.hierarchy.parameters


def test_a_config_alone_suffices_without_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    for ref in (str(saved), str(saved / "config.json")):
        opened = open_model(ref, weights=False)
        assert opened.hierarchy.parameters == 6992
        assert next(opened.model.parameters()).is_meta
    with pytest.raises(ModelError, match=r"has a config but no weights: model.safetensors is needed"):
        open_model(str(saved))
    with pytest.raises(ModelError, match="is a config without weights"):
        open_model(str(saved / "config.json"))


def test_a_config_without_architectures_opens_as_its_usual_class(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["architectures"]
    (saved / "config.json").write_text(json.dumps(config))
    assert type(open_model(str(saved)).model).__name__ == "LlamaForCausalLM"


def test_a_missing_path_is_named() -> None:
    with pytest.raises(ModelError, match=r"model ./nowhere does not exist: give a directory"):
        open_model("./nowhere")
    with pytest.raises(ModelError, match=r"model no-such-model does not exist"):
        open_model("no-such-model")


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model: it has no config.json"):
        open_model(str(tmp_path))


def test_a_truncated_file_is_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    content = path.read_bytes()
    for length in (len(content) - 100, 40, 3):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"model.safetensors is (a )?truncated"):
            open_model(str(saved))
    path.write_bytes(b"\x10" + bytes(7) + b"not a header at " + bytes(20))
    with pytest.raises(ModelError, match="is not a safetensors file"):
        open_model(str(saved))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        open_model(str(tmp_path))


def test_missing_and_misshapen_tensors_are_named(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved / "model.safetensors")
    lacking = {name: tensor for name, tensor in tensors.items() if "1.mlp.up" not in name}
    save_file(lacking, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj.weight"):
        open_model(str(saved))
    save_file({**tensors, "model.norm.weight": torch.ones(5)}, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="config"):
        open_model(str(saved))


def test_an_unknown_architecture_is_named(saved: Path) -> None:
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architectures": ["MadeUpForCausalLM"]}))
    with pytest.raises(ModelError, match="unknown architecture 'MadeUpForCausalLM'"):
        open_model(str(saved))
    path.write_text(json.dumps({**config, "model_type": "made-up"}))
    with pytest.raises(ModelError, match="unknown architecture 'made-up'"):
        open_model(str(saved))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("{}", "names no model_type"),
        ('{"model_type": "llama", "hidden_size": "many"}', "config"),
    ],
)
def test_a_malformed_config_is_named(saved: Path, text: str, said: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(ModelError, match=said) as caught:
        open_model(str(saved), weights=False)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_not_opened(saved: Path) -> None:
    shutil.move(saved / "model.safetensors", saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match="which is a pickle"):
        open_model(str(saved))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(ModelError, match=r"is not a model: give a directory, a .gguf"):
        open_model(str(path))


def test_a_processor_is_built_without_torchvision(tmp_path: Path, saved: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    build("llava").save_pretrained(tmp_path / "vlm")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<image>": 1, "red": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", extra_special_tokens={"image_token": "<image>"}
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(images, tokenizer, patch_size=8, vision_feature_select_strategy="default").save_pretrained(
        tmp_path / "vlm"
    )
    opened = open_model(str(tmp_path / "vlm"))
    assert type(opened.processor).__name__ == "LlavaProcessor"
    assert type(opened.processor.image_processor).__name__.endswith("Pil")
    assert opened.tokenizer is opened.processor.tokenizer


def test_a_compressed_tensors_checkpoint_opens_dense(tmp_path: Path) -> None:
    from gossamer.models.checkpoint import save_compressed
    from gossamer.models.packed import QuantizedTensor, Scheme
    from gossamer.models.structure import read_matrix

    build("llama").save_pretrained(tmp_path / "dense")
    opened = open_model(str(tmp_path / "dense"))
    schemes = {"q_proj": Scheme(4, 8), "down_proj": Scheme(3), "lm_head": Scheme(8, None, symmetric=False)}
    tensors = {}
    for layer in opened.hierarchy.layers():
        scheme = schemes.get(layer.path.rsplit(".", 1)[-1])
        if scheme is not None:
            matrix = read_matrix(opened.model, layer)
            groups = matrix.reshape(layer.rows, scheme.groups(layer.columns), -1)
            scales = (groups.abs().amax(-1) / scheme.high).half()
            zeros = None if scheme.symmetric else torch.ones_like(scales, dtype=torch.int8)
            tensors[layer.path] = QuantizedTensor.encode(matrix, scheme, scales, zeros)
    stored = save_compressed(opened, tensors, tmp_path / "packed")
    again = open_model(str(tmp_path / "packed"))
    assert again.stored_bytes == stored.weight_bytes
    assert again.hierarchy == opened.hierarchy
    assert not hasattr(again.model.config, "quantization_config")
    for layer in again.hierarchy.layers():
        matrix = read_matrix(again.model, layer)
        assert matrix.dtype == torch.float32
        if layer.path in tensors:
            assert torch.equal(matrix, tensors[layer.path].dequantize())
    again.model.save_pretrained(tmp_path / "plain")
    plain = open_model(str(tmp_path / "plain"))
    assert torch.equal(run("llama", plain.model)[0], run("llama", again.model)[0])
