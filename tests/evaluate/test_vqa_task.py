import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from standins import llama, opened

from gossamer.core.errors import DataError
from gossamer.evaluate.packing import packed
from gossamer.evaluate.prompts import Prompt, answer_ids, prompt_of
from gossamer.evaluate.task import BatchCache, Task
from gossamer.evaluate.tasks import open_task


@pytest.fixture(scope="module")
def task(vlm):
    return open_task("vqa", "scenes", vlm, limit=45)


@pytest.fixture
def long_file(tmp_path):
    """Questions whose answers have one and two tokens."""
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "a.png")
    rows = [("how many objects ?", "two"), ("where is the red circle ?", "top-left"), ("what is there ?", "red circle")]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"image": "a.png", "question": q, "answer": a}) + "\n" for q, a in rows))
    return str(path)


def test_one_pass_equals_generate(vlm, task):
    assert task.longest == 1
    generated = torch.cat([task.generate(vlm.model, b.indices) for b in task.batches(7)])
    expected = vlm.processor.tokenizer.batch_decode(generated, skip_special_tokens=True)
    assert task.predictions(vlm.model) == [text.strip() for text in expected]
    assert len(set(expected)) > 3


def test_batching_and_padding_change_nothing(vlm, task):
    alone = torch.cat([task.log_probs(vlm.model(**b.inputs), b) for b in task.batches(1)])
    together = torch.cat([task.log_probs(vlm.model(**b.inputs), b) for b in task.batches(16)])
    assert torch.allclose(alone, together, atol=2e-4)


def test_losses_are_those_of_the_right_answer(vlm, task):
    assert isinstance(task, Task)
    batch = next(task.batches(8))
    log_probs = task.log_probs(vlm.model(**batch.inputs), batch)
    assert log_probs.shape == (8, len(vlm.tokenizer))
    assert task.owners(batch).tolist() == list(range(8))
    words = vlm.tokenizer
    truth = [words.convert_tokens_to_ids(task.examples[i].answer) for i in range(8)]
    assert torch.allclose(task.losses(log_probs, batch), -log_probs[range(8), truth])


def test_figures_and_their_groups(vlm, task):
    results = task.results(vlm.model)
    found = task.summarise(results)
    assert found["accuracy"].n == 45
    assert found["accuracy_closed"].n + found["accuracy_open"].n == 45
    assert found["accuracy_closed"].n == sum(e.answer in ("yes", "no") for e in task.examples)
    assert sum(m.n for name, m in found.items() if name.startswith("accuracy_")) == 90
    assert found["loss"].value == pytest.approx(results.loss.mean())
    assert found["accuracy"].method == "wilson"
    perfect = type(results)(tuple(e.answer.upper() for e in task.examples), np.ones(45, dtype=bool), results.loss)
    assert task.summarise(perfect)["open_recall"].value == 1
    assert task.difference(results, perfect).value == pytest.approx(1 - found["accuracy"].value)
    assert task.measure(vlm.model) == found


def test_subsets_keep_answers(vlm, task):
    whole, part = task.results(vlm.model), task.subset([40, 2, 7]).results(vlm.model)
    assert part.predictions == tuple(whole.predictions[i] for i in (40, 2, 7))
    assert np.allclose(part.loss, whole.loss[[40, 2, 7]], rtol=1e-3)


def test_longer_answers_are_generated_and_teacher_forced(vlm, long_file):
    task = open_task("vqa", long_file, vlm)
    assert task.longest == 2
    batch = next(task.batches(3))
    assert task.owners(batch).tolist() == [0, 1, 2, 2]
    results = task.results(vlm.model)
    by_hand = []
    for i, example in enumerate(task.examples):
        inputs = task.prompts([i])
        ids = torch.cat([inputs["input_ids"], torch.tensor([task.answers[i]])], 1)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            log_probs = vlm.model(**inputs).logits[0].log_softmax(-1)
        n = len(task.answers[i])
        by_hand.append(np.mean([-log_probs[k - n - 1, ids[0, k - n]].item() for k in range(n)]))
        given = vlm.model.generate(**task.prompts([i]), max_new_tokens=2, do_sample=False)[0, -2:]
        assert results.predictions[i] == vlm.tokenizer.decode(given, skip_special_tokens=True).strip(), example
    assert np.allclose(results.loss, by_hand, rtol=1e-4)


def test_a_forced_length_still_answers(vlm, long_file):
    results = open_task("vqa", long_file, vlm, max_new_tokens=1).results(vlm.model)
    assert len(results.predictions) == 3
    with pytest.raises(DataError, match="max_new_tokens 0"):
        open_task("vqa", long_file, vlm, max_new_tokens=0)


def test_prompts(vlm):
    assert prompt_of(vlm)("why ?") == "<image> why ?"
    assert prompt_of(vlm, "Q: {question} A:")("x") == "Q: x A:"
    with pytest.raises(DataError, match="no place for the question"):
        Prompt("<image>")
    bare = opened(vlm.model, processor=vlm.processor)
    with pytest.raises(DataError, match="neither a default prompt nor a chat template"):
        prompt_of(bare)


def test_a_chat_template_is_used_where_there_is_no_prompt(vlm):
    from copy import copy

    processor = copy(vlm.processor)
    processor.chat_template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
    )
    prompt = prompt_of(opened(vlm.model, processor=processor))
    assert prompt("Why?") == "USER: <image>\nWhy?\nAnswer the question using a single word or phrase. ASSISTANT:"


def test_answers_continue_their_prompt(vlm):
    assert answer_ids(vlm.tokenizer, "<image> where ?", "top-left") == [vlm.tokenizer.convert_tokens_to_ids("top-left")]


def test_text_models_cannot_answer(text_model):
    with pytest.raises(DataError, match="stand-in cannot answer questions"):
        open_task("vqa", "scenes", opened(text_model))
    with pytest.raises(DataError, match="stand-in cannot answer questions"):
        open_task("vqa", "scenes", opened(llama()))


@pytest.mark.parametrize("size", [1, 16, 64])
def test_packing_questions_about_a_picture_changes_nothing(vlm, task, long_file, size):
    shuffled = task.subset(torch.randperm(45, generator=torch.Generator().manual_seed(0)).tolist())
    for some in (task, shuffled, open_task("vqa", long_file, vlm)):
        joint = some.packed_for(vlm.model)
        assert joint.packed
        scores = []
        for form in (some, joint):
            batches = list(form.batches(size))
            assert sorted(i for batch in batches for i in batch.indices) == list(range(len(some)))
            found = {}
            for batch in batches:
                with torch.inference_mode():
                    log_probs = form.log_probs(vlm.model(**batch.inputs), batch)
                for row, owner in zip(log_probs, form.owners(batch).tolist(), strict=True):
                    found.setdefault(owner, []).append(row)
            scores.append(torch.cat([torch.stack(found[i]) for i in range(len(some))]))
        assert torch.allclose(*scores, atol=2e-4)
    rows = [len(batch.inputs["input_ids"]) for batch in task.packed_for(vlm.model).batches(64)]
    assert sum(rows) == len({example.image.key for example in task.examples})


def test_nothing_is_packed_where_that_would_be_wrong(vlm, task):
    token, rows = vlm.processor.image_token_id, [(0, 1), (2, 3)]
    prompts, answers = task.prompts((0, 1, 2, 3)), [task.answers[i] for i in range(4)]
    assert packed(prompts, answers, rows, token) is not None
    assert packed(prompts, answers, rows, None) is None
    late = {name: prompts[name].flip(1) for name in ("input_ids", "attention_mask")}
    assert packed({**prompts, **late}, answers, rows, token) is None, "the picture comes behind the question"
    assert packed({**prompts, "image_grid_thw": torch.ones(4, 3)}, answers, rows, token) is None

    class Deaf(torch.nn.Module):
        """A model that does not heed the mask."""

        def forward(self, attention_mask=None, **inputs):
            return vlm.model(**inputs)

    assert task.packed_for(Deaf()) is task
    assert not task.subset(range(0, 45, 40)).packed_for(vlm.model).packed, "no picture is asked about twice"


@pytest.mark.parametrize("prefix", [False, True])
def test_token_types_keep_the_answer_causal_in_prefix_models(task, prefix):
    def processor(**options):
        found = task.processor(**options)
        return {**found, "token_type_ids": torch.zeros_like(found["input_ids"]), "labels": found["input_ids"]}

    batch = next(replace(task, processor=processor, prefix_model=prefix, _cache=BatchCache()).batches(3))
    assert "labels" not in batch.inputs
    assert batch.inputs["token_type_ids"][:, -1].tolist() == [int(prefix)] * 3
    assert not batch.inputs["token_type_ids"][:, :-1].any()
