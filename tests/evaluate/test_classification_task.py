import numpy as np
import pytest
import torch
from standins import opened

from gossamer.core.errors import DataError
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name in ("cat", "dog", "fox"):
        (path / name).mkdir()
        for i in range(5):
            Image.fromarray(random.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path / name / f"{i}.png")
    return str(path)


def vit(labels):
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)}, initializer_range=0.5,
    )  # fmt: skip
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return opened(ViTForImageClassification(config).eval(), processor=processor)


@pytest.fixture(scope="module")
def clip():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = ["<pad>", "<unk>", "a", "photo", "of", "cat", "dog", "fox", "<eos>"]
    base = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")
    size = {"height": 16, "width": 16}
    processor = CLIPProcessor(CLIPImageProcessorPil(size=size, crop_size=size), tokenizer)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, "vocab_size": 9, "max_position_embeddings": 8, "eos_token_id": 8, "pad_token_id": 0},
        vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    return opened(CLIPModel(config).eval(), processor=processor, tokenizer=tokenizer)


def test_labels_are_matched_by_name(folder):
    parts = vit(["fox", "bird", "Cat", "dog"])
    task = open_task("classification", folder, parts)
    assert isinstance(task, Task)
    assert task.labels[:3] == (2, 3, 0)
    batch = next(task.batches(4))
    log_probs = task.log_probs(parts.model(**batch.inputs), batch)
    assert log_probs.shape == (4, 4)
    assert torch.allclose(task.losses(log_probs, batch), -log_probs[range(4), batch.labels])
    assert task.owners(batch).tolist() == [0, 1, 2, 3]


def test_figures(folder):
    parts = vit(["cat", "dog", "fox"])
    task = open_task("classification", folder, parts)
    results = task.results(parts.model)
    found = task.summarise(results)
    assert found["accuracy"].value == np.mean(results.correct)
    assert found["balanced_accuracy"].value == pytest.approx(found["accuracy"].value)
    assert found["balanced_accuracy"].low <= found["balanced_accuracy"].value <= found["balanced_accuracy"].high
    assert found["loss"].value == pytest.approx(results.loss.mean())
    assert task.measure(parts.model) == found
    assert task.difference(results, results).value == 0
    part = task.subset([14, 0]).results(parts.model)
    assert np.allclose(part.loss, results.loss[[14, 0]], rtol=1e-4)
    assert task.predictions(parts.model)[0] in ("cat", "dog", "fox")


def test_numbers_fit_unnamed_labels(folder):
    assert open_task("classification", folder, vit(["LABEL_0", "LABEL_1", "LABEL_2"])).labels[:3] == (0, 1, 2)
    with pytest.raises(DataError, match=r"class 'fox' of .* is none of the labels of stand-in \(cat, dog\)"):
        open_task("classification", folder, vit(["cat", "dog"]))
    with pytest.raises(DataError, match="2 class names were given"):
        open_task("classification", folder, vit(["cat", "dog"]), names=["cat", "dog"])


def test_zero_shot(folder, clip):
    task = open_task("classification", folder, clip)
    assert task.protocol["prompt"] == "a photo of a {name}"
    batch = next(task.batches(4))
    assert batch.inputs["input_ids"].shape == (3, 5)
    log_probs = task.log_probs(clip.model(**batch.inputs), batch)
    assert log_probs.shape == (4, 3)
    assert task.summarise(task.results(clip.model))["accuracy"].n == 15
    with pytest.raises(DataError, match="no place for the class"):
        open_task("classification", folder, clip, prompt="thing")


def test_other_models_are_refused(folder, text_model, vlm):
    with pytest.raises(DataError, match="no image processor"):
        open_task("classification", folder, opened(text_model))
    with pytest.raises(DataError, match="classifies no images"):
        open_task("classification", folder, opened(text_model, processor=vlm.processor))
