import contextlib
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from standins import opened

from gossamer.core.errors import DataError
from gossamer.evaluate.precision import Detections, _truth, ap_difference, ap_measure, average_precision, match
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task


@pytest.fixture(scope="module")
def detector():
    """An untrained OWLv2 with a word-level tokenizer, opened."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2Processor,
        Owlv2TextConfig,
        Owlv2VisionConfig,
        PreTrainedTokenizerFast,
    )
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    from gossamer.data.scenes import COLOURS, SHAPES

    words = ("<pad>", "<bos>", "<unk>", *COLOURS, *SHAPES, "<eos>")
    base = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    base.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", None, [("<bos>", 1), ("<eos>", len(words) - 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
    size = {"height": 48, "width": 48}
    processor = Owlv2Processor(Owlv2ImageProcessorPil(size=size), tokenizer)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config=Owlv2TextConfig(
            vocab_size=len(words), max_position_embeddings=8, pad_token_id=0, bos_token_id=1,
            eos_token_id=len(words) - 1, **small,
        ).to_dict(),
        vision_config=Owlv2VisionConfig(image_size=48, patch_size=12, **small).to_dict(),
        projection_dim=16,
    )  # fmt: skip
    model = Owlv2ForObjectDetection(config).eval()
    return opened(model, processor=processor, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def task(detector):
    return open_task("detection", "scenes", detector, limit=12)


def perfect(example):
    return Detections(np.array(example.boxes), np.full(len(example.boxes), 0.9), np.array(example.labels))


def noisy(examples, seed):
    """Jittered truth and false alarms, with scores that repeat."""
    random = np.random.default_rng(seed)
    out = []
    for e in examples:
        boxes = np.array(e.boxes) + random.normal(0, 1.5, (len(e.boxes), 4))
        extra = random.uniform(0, 40, (6, 2))
        boxes = np.concatenate([boxes, np.concatenate([extra, extra + 9], 1)])
        labels = np.concatenate([e.labels, random.integers(0, 48, 6)])
        out.append(Detections(boxes, random.integers(1, 20, len(boxes)) / 20, labels))
    return out


def by_pycocotools(examples, found):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _truth(examples, 48)
        truth.createIndex()
        rows = [
            {"image_id": i, "category_id": int(c), "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": s}
            for i, f in enumerate(found)
            for b, s, c in zip(f.boxes.tolist(), f.scores, f.labels, strict=True)
        ]
        run = COCOeval(truth, truth.loadRes(rows), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[0], run.stats[1]


@pytest.mark.parametrize("crowd", [False, True])
def test_ap_equals_pycocotools(task, crowd):
    examples = list(task.examples)
    if crowd:
        examples[0] = replace(examples[0], crowd=(True,) * len(examples[0].boxes))
    for seed in range(3):
        found = noisy(examples, seed)
        (ap,) = average_precision(match(examples, found, 48))
        assert (ap.mean(), ap[0]) == pytest.approx(by_pycocotools(examples, found), abs=1e-9)


def test_perfect_and_empty_detections(task):
    right = match(task.examples, [perfect(e) for e in task.examples], 48)
    assert average_precision(right) == pytest.approx(np.ones((1, 10)))
    measure = ap_measure(right, draws=50)
    assert (measure.value, measure.low, measure.high, measure.n) == pytest.approx((1, 1, 1, 12))
    nothing = [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int))] * 12
    empty = match(task.examples, nothing, 48)
    assert average_precision(empty) == pytest.approx(np.zeros((1, 10)))
    assert ap_difference(empty, right, draws=50).low == pytest.approx(1)


def test_a_weight_is_a_copy_of_the_picture(task):
    examples = list(task.examples)
    found = noisy(examples, 5)
    doubled = match([*examples, examples[2]], [*found, found[2]], 48)
    weights = np.ones((1, 12))
    weights[0, 2] = 2
    weighed = average_precision(match(examples, found, 48), weights)
    assert weighed == pytest.approx(average_precision(doubled), abs=0.02)


def test_the_interval_holds_the_value_and_is_repeatable(task):
    matches = match(task.examples, noisy(task.examples, 1), 48)
    first = ap_measure(matches, draws=100)
    assert first.low < first.high
    assert 0 <= first.low <= first.high <= 1
    assert ap_measure(matches, draws=100) == first
    assert ap_difference(matches, matches, draws=20).high == 0


def test_positions_and_losses(detector, task):
    assert isinstance(task, Task)
    batch = next(task.batches(3))
    output = detector.model(**batch.inputs)
    log_probs = task.log_probs(output, batch)
    assert log_probs.shape == (3 * 16 * 48, 2)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(len(log_probs)), atol=1e-6)
    owners, losses = task.owners(batch), task.losses(log_probs, batch)
    assert owners.bincount().tolist() == [16 * 48] * 3
    assert losses.shape == owners.shape
    # by hand for the first picture
    present = output.logits[0].sigmoid()
    labels = batch.labels[0]
    expected = -(1 - present)[labels == 0].log().sum()
    for k in labels.unique().tolist()[1:]:
        expected -= present[labels == k].max().log()
    assert losses[owners == 0].sum().item() == pytest.approx(expected.item(), rel=1e-4)


def test_every_object_has_its_patch(task):
    for batch in task.batches(4):
        for row, i in enumerate(batch.indices):
            numbers = set(batch.labels[row].unique().tolist()) - {0}
            pairs = {(b, c) for b, c in zip(task.examples[i].boxes, task.examples[i].labels, strict=True)}
            assert len(numbers) >= len({c for _, c in pairs})
            for k in numbers:
                assert (batch.labels[row] == k).nonzero()[:, 1].unique().tolist() == [task.examples[i].labels[k - 1]]


def test_measuring_a_detector(detector, task):
    results = task.results(detector.model)
    found = task.summarise(results)
    assert set(found) >= {"ap50", "ap", "ap50_seen", "loss"}
    assert 0 <= found["ap50"].value <= 1
    assert found["loss"].value > 0
    part = task.subset([5, 0])
    boxes = part.results(detector.model).found[0].boxes
    assert np.allclose(boxes, results.found[5].boxes, atol=1e-2)


class Oracle(torch.nn.Module):
    """Answers with the truth that it is given, at the patch of each object's middle."""

    def __init__(self, task):
        super().__init__()
        self.task = task
        self.at = 0

    def forward(self, pixel_values, input_ids, attention_mask):
        n = len(pixel_values)
        assert len(input_ids) == n * 48
        logits, boxes = torch.full((n, 16, 48), -9.0), torch.full((n, 16, 4), 0.5)
        for row in range(n):
            e = self.task.examples[self.at]
            self.at += 1
            for place, (box, label) in enumerate(zip(e.boxes, e.labels, strict=True)):
                scale = max(e.width, e.height)
                x0, y0, x1, y1 = (v / scale for v in box)
                boxes[row, place] = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
                logits[row, place, label] = 5.0
        return SimpleNamespace(logits=logits, pred_boxes=boxes)


def test_an_oracle_reaches_one(task):
    found = task.measure(Oracle(task))
    assert found["ap"].value == pytest.approx(1)
    assert (found["ap50_seen"].value, found["ap50_held_out"].value) == pytest.approx((1, 1))


def test_padded_photos_are_scaled_by_their_longer_side(detector, tmp_path):
    Image.new("RGB", (80, 40)).save(tmp_path / "a.png")
    root = {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 40}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [60, 5, 20, 30]}],
        "categories": [{"id": 1, "name": "red"}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(root))
    task = open_task("detection", str(path), detector)
    assert task.protocol["prompt"] == "a photo of a {name}"
    assert task._covered(task.examples[0]).nonzero()[:, 0].tolist() == [3, 7]
    path.write_text(json.dumps(root | {"annotations": []}))
    with pytest.raises(DataError, match="has no boxes"):
        open_task("detection", str(path), detector)


def test_other_models_are_refused(detector, text_model):
    with pytest.raises(DataError, match="needs an OWL-ViT or OWLv2"):
        open_task("detection", "scenes", opened(text_model))
    with pytest.raises(DataError, match="no place for the class"):
        open_task("detection", "scenes", detector, limit=2, prompt="a thing")
