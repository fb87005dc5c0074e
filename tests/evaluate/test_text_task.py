import math
import zipfile

import numpy as np
import pytest
import torch
from standins import ByteTokenizer, llama, opened

from gossamer.core.errors import DataError
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task
from gossamer.models.open import open_model

TEXT = "The gossamer albatross crossed the Channel on the power of one cyclist. " * 3


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def by_hand(model, ids, context, stride, bos):
    """Loss and count of each counted token, one window after the other, without batches."""
    seen, losses = 0, []
    room = context - bos
    for start in range(0, len(ids), stride):
        part = ids[start : start + room]
        row = ([1] if bos else []) + part
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
        for place in range(1, len(row)):
            absolute = start + place - bos
            if absolute >= seen:
                losses.append(-log_probs[place - 1, row[place]].item())
        seen = start + len(part)
        if seen >= len(ids):
            break
    return losses


@pytest.mark.parametrize(("context", "stride"), [(32, None), (32, 8), (32, 31), (7, 1), (64, None), (64, 5)])
@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_equals_a_loop_by_hand(text_model, text_file, context, stride, bos):
    if bos and stride == 31:
        stride = 30
    parts = opened(text_model, tokenizer=ByteTokenizer(bos=1))
    task = open_task("text", text_file, parts, context=context, stride=stride, bos=bos, limit=20)
    every = open_task("text", text_file, parts, context=context, stride=stride, bos=bos)
    assert len(task) == min(20, len(every))
    losses = by_hand(text_model, list(TEXT.encode()), context, stride or context - bos, int(bos))
    assert every.protocol["scored_tokens"] == len(losses)
    measured = every.measure(text_model)
    assert measured["perplexity"].value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert measured["loss"].value == pytest.approx(np.mean(losses), rel=1e-5)
    assert measured["perplexity"].low < measured["perplexity"].value < measured["perplexity"].high


def test_overlapping_windows_count_every_token_once(text_model, text_file):
    task = open_task("text", text_file, opened(text_model, tokenizer=ByteTokenizer()), context=32, stride=8)
    assert task.protocol["scored_tokens"] == len(TEXT) - 1
    assert task.protocol["stride_tokens"] == 8
    assert task.protocol["begin_token"] is False


def test_a_task_reads_batches_positions_and_owners(text_model, text_file):
    task = open_task("text", text_file, opened(text_model, tokenizer=ByteTokenizer()), context=40)
    assert isinstance(task, Task)
    batches = list(task.batches(4))
    assert [b.size for b in batches] == [4, 2]
    for batch in batches:
        output = text_model(**batch.inputs)
        log_probs = task.log_probs(output, batch)
        owners, losses = task.owners(batch), task.losses(log_probs, batch)
        assert log_probs.dtype == torch.float32
        assert log_probs.shape == (len(owners), 256)
        assert torch.allclose(log_probs.exp().sum(-1), torch.ones(len(owners)), atol=1e-5)
        assert losses.shape == owners.shape
        assert set(owners.tolist()) == set(batch.indices)
    assert [b.indices for b in task.batches(4)] == [b.indices for b in batches]
    assert not torch.is_inference(next(iter(task.batches(4))).inputs["input_ids"])


def test_a_subset_is_the_same_windows_renumbered(text_model, text_file):
    task = open_task("text", text_file, opened(text_model, tokenizer=ByteTokenizer()), context=40)
    part = task.subset([3, 1])
    whole, some = task.results(text_model), part.results(text_model)
    assert np.allclose(some.loss, whole.loss[[3, 1]], rtol=1e-5)
    assert part.protocol["n"] == 2
    assert part.protocol["scored_tokens"] == 78


def test_the_difference_is_paired(text_model, text_file):
    task = open_task("text", text_file, opened(text_model, tokenizer=ByteTokenizer()), context=20)
    before = task.results(text_model)
    assert task.difference(before, before).value == 0
    other = task.results(llama(positions=65))
    assert task.difference(before, other).high == 0  # equal weights: rotary positions have none
    worse = type(before)(before.loss + 0.1 * before.count, before.count)
    step = task.difference(before, worse)
    assert step.low > 0
    assert step.value == pytest.approx(task.summarise(before)["perplexity"].value * (math.exp(0.1) - 1))


def test_documents_are_not_mixed(text_model, tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("One story.\n<|endoftext|>\nAnother, longer story.\n<|endoftext|>\nX")
    task = open_task("text", str(path), opened(text_model, tokenizer=ByteTokenizer(bos=1)), context=20)
    starts = [bytes(w.ids[1:4]) for w in task.windows]
    assert starts == [b"One", b"Ano", b"ry.", b"X"]
    assert all(w.ids[0] == 1 for w in task.windows)
    assert task.protocol["begin_token"] is True


def test_defaults_follow_the_model(text_file):
    model = llama(positions=48)
    task = open_task("text", text_file, opened(model, tokenizer=ByteTokenizer()))
    assert task.protocol["context_tokens"] == task.protocol["stride_tokens"] == 48


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 65}, "context 65 is not possible.*3 to 64"),
        ({"context": 1}, "context 1 is not possible"),
        ({"stride": 0}, "stride 0 is not possible"),
        ({"context": 32, "stride": 33}, "1 to 32"),
        ({"limit": 0}, "limit of 0"),
        ({"windows": 3}, "no setting 'windows'.*context"),
        ({"bos": True}, "no begin-of-text token"),
        ({"split": "val"}, "no split"),
    ],
)
def test_impossible_settings(text_model, text_file, settings, message):
    with pytest.raises(DataError, match=message):
        open_task("text", text_file, opened(text_model, tokenizer=ByteTokenizer()), **settings)


def test_wrong_tokenizers_and_short_texts(text_model, text_file, tmp_path):
    with pytest.raises(DataError, match=r"wrong tokenizer: token id 121 .* 100 entries of stand-in"):
        open_task("text", text_file, opened(llama(vocabulary=100), tokenizer=ByteTokenizer()))
    with pytest.raises(DataError, match="has no tokenizer"):
        open_task("text", text_file, opened(text_model))
    short = tmp_path / "short.txt"
    short.write_text("a")
    with pytest.raises(DataError, match="too short"):
        open_task("text", str(short), opened(text_model, tokenizer=ByteTokenizer()))
    with pytest.raises(DataError, match="unknown task 'poem': choose one of text"):
        open_task("poem", text_file, opened(text_model, tokenizer=ByteTokenizer()))


def test_a_real_models_loss_depends_on_how_far_into_a_story_it_reads(data_folder, tmp_path):
    """stories260K on the last 10 % of TinyStories v2, 166 stories: 1.248 nats per token over the first 128 tokens,
    1.306 over 256, 1.342 over 512, and 1.378 over all, since what lies beyond 512 tokens begins without its story.

    The two stated figures, about 1.24 (in the data folder's notes) and 1.297 (llama2.c, 512 tokens, its own split), are
    thus not of one protocol. The tokens and logits are llama2.c's own, see tests/models/test_llama2c.py.
    """
    model = open_model(str(data_folder / "stories260K" / "stories260K.bin"))
    with zipfile.ZipFile(data_folder / "tinystories.zip") as archive:
        text = archive.read("v2_train_head.txt").decode()
    stories = text[int(0.9 * len(text)) :].split("<|endoftext|>")[1:-1]
    found = {}
    for most in (127, 511):
        starts = [model.tokenizer(story.strip(), add_special_tokens=False)["input_ids"][:most] for story in stories]
        path = tmp_path / f"{most}.txt"
        path.write_text("<|endoftext|>".join(model.tokenizer.decode(ids) for ids in starts))
        task = open_task("text", str(path), model)
        assert task.protocol["begin_token"] is True
        found[most] = task.measure(model.model)["loss"].value
    assert found == {127: pytest.approx(1.248, abs=2e-3), 511: pytest.approx(1.342, abs=2e-3)}
