"""Learning on one's own text: what is written follows the distributions, and the reverse KL on it falls."""

from dataclasses import replace

import pytest
import torch
from tests.compress.distill.test_heal import QUICK, Case, feeds, original, texts
from tests.models.tiny import build

from gossamer.compress.apply import apply_steps
from gossamer.compress.distill import Heal
from gossamer.compress.distill.writing import OwnText
from gossamer.core.errors import DataError, PlanError
from gossamer.core.plan import Step
from gossamer.core.technique import build as technique
from gossamer.data.batch import Batch
from gossamer.models.structure import hierarchy_of

NAMED = {0, 1, 2}
"""The token ids that the tiny models' configs name."""


def lesson_of(teacher, batch, tokens=4, share=0.0, seed=0):
    return OwnText.of(teacher, batch, tokens, share, 1.0, torch.Generator().manual_seed(seed))


def other(model):
    """A model that is not far from another one."""
    changed = original()
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter, value in zip(changed.parameters(), model.parameters(), strict=True):
            parameter.copy_(value + 0.3 * value.std() * torch.randn(value.shape, generator=draw))
    return changed


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_tokens_are_drawn_from_the_mixture_given_what_was_written_before(share):
    teacher = original()
    student = other(teacher)
    row = torch.randint(3, 90, (1, 6), generator=torch.Generator().manual_seed(0))
    count = 8000
    lesson = lesson_of(teacher, Batch({"input_ids": row.expand(count, -1)}, torch.empty(0), ()), 2, share)
    lesson = replace(lesson, places=torch.tensor([[3, 4]]).expand(count, -1))
    ids = lesson.written(student).inputs["input_ids"]
    assert torch.equal(ids[:, :3], row[:, :3].expand(count, -1))

    def probabilities(text):
        both = [model(text).logits[:, -1].double().softmax(-1) for model in (student, teacher)]
        found = (1 - share) * both[0] + share * both[1]
        found[:, sorted(NAMED)] = 0
        return found / found.sum(-1, keepdim=True)

    wanted = probabilities(row[:, :3])[0]
    seen = torch.bincount(ids[:, 3], minlength=96).double() / count
    assert float((seen - wanted).abs().sum()) < 0.12
    second = probabilities(ids[:, :4])
    assert float((torch.bincount(ids[:, 4], minlength=96) / count - second.mean(0)).abs().sum()) < 0.12
    assert float(second.gather(1, ids[:, 4:5]).mean()) == pytest.approx(float(second.square().sum(-1).mean()), rel=0.05)


def test_losses_are_the_reverse_divergence_on_the_text_written():
    teacher = original()
    student, batch = other(teacher), texts(3)[0]
    lesson = lesson_of(teacher, batch)
    assert sorted(lesson.places.unique().tolist()) == list(
        range(int(lesson.places.min()), int(lesson.places.max()) + 1)
    )
    ids = lesson.written(student).inputs["input_ids"]
    q, p = (model(ids).logits.log_softmax(-1) for model in (student, teacher))
    whole = (q.exp() * (q - p)).sum(-1)
    wanted = torch.stack([whole[row, lesson.places[row] - 1] for row in range(len(ids))]).flatten()
    torch.testing.assert_close(lesson.losses(student), wanted, rtol=1e-4, atol=1e-5)
    assert float(lesson.losses(teacher).abs().max()) < 1e-5
    assert torch.equal(lesson.written(student).inputs["input_ids"], ids), "the same model writes the same"
    assert not torch.equal(lesson.written(teacher).inputs["input_ids"], ids)
    assert not torch.equal(lesson_of(teacher, batch, seed=1).places, lesson.places)


def test_healing_lowers_the_reverse_divergence_on_text_of_another_hand():
    learn, held = texts(1, 2, 32), texts(2, 1, 32)
    case = Case(Heal(**QUICK, loss="on_policy", tokens=4), learn=learn, held=held)
    teacher = case.lessons[0].teacher
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), original().parameters(), strict=True))

    def reverse(model):
        ids = torch.cat([batch.inputs["input_ids"] for batch in texts(5)])[:, :4].repeat(20, 1)
        draw = torch.Generator().manual_seed(1)
        for _ in range(5):
            chosen = torch.multinomial(model(ids).logits[:, -1].softmax(-1), 1, generator=draw)
            ids = torch.cat([ids, chosen], 1)
        q, p = (one(ids).logits[:, 3:-1].log_softmax(-1) for one in (model, teacher))
        return float((q.exp() * (q - p)).sum(-1).mean())

    before, healed = reverse(case.model), case.run()
    assert healed.after < 0.9 * healed.before
    assert healed.after == pytest.approx(case.loss(), rel=1e-5)
    assert reverse(case.model) < 0.95 * before


@pytest.mark.parametrize("name", ["llava", "whisper", "mamba", "qwen3_vl"])
def test_families_that_write_are_healed_and_their_images_stay(name):
    model = original(name)
    batches = feeds(name, model, 4)
    lesson = lesson_of(model, batches[0])
    key = "decoder_input_ids" if name == "whisper" else "input_ids"
    before, after = batches[0].inputs[key], lesson.written(model).inputs[key]
    changed = before[:, : after.shape[1]] != after
    assert changed.any()
    assert not bool((before[:, : after.shape[1]][changed] == 90).any())
    assert name not in ("llava", "qwen3_vl") or not bool((after[changed] == 90).any())
    part = "language.blocks.*.mixer.{in_proj,out_proj}" if name == "mamba" else "language.blocks.*"
    case = Case(Heal(steps=3, loss="on_policy", tokens=2), name, part, learn=batches[:2], held=batches[2:3])
    healed = case.run()
    assert healed.after == pytest.approx(case.loss(), rel=1e-5)
    assert 0 < healed.after <= healed.before


def test_only_tokens_that_count_are_written():
    model = original()
    ids = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(4))
    ids[0, 5] = 2  # the config's end of text
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    lesson = lesson_of(model, Batch({"input_ids": ids, "attention_mask": mask}, labels, (0, 1, 2)), tokens=20)
    found = [sorted(place for place in row.tolist() if place >= 0) for row in lesson.places]
    assert found == [[4, 6, 7, 8], [4], [4, 5, 6, 7, 8]]
    assert len(lesson.losses(model)) == 10
    with pytest.raises(DataError, match="no token to write"):
        lesson_of(model, Batch({"input_ids": ids}, torch.full_like(ids, -100), (0, 1, 2)))


def test_it_is_a_plans_step_and_the_same_seed_gives_the_same_bytes():
    steps = [
        Step.model_validate({"at": "language.blocks.*", "do": "rtn", "bits": 2}),
        Step.model_validate({"at": "language.**", "do": "heal", "loss": "on_policy", "steps": 3, "tokens": 3}),
    ]
    found = []
    for _ in range(2):
        model = original()
        done = apply_steps(model, hierarchy_of(model, model.config), steps, texts(1, count=4))
        assert any("step 2: healing took the held-out loss" in note for note in done.notes)
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


@pytest.mark.parametrize("name", ["vit", "bert", "clip"])
def test_models_that_write_no_text_are_refused(name):
    model = build(name)
    hierarchy = hierarchy_of(model, model.config)
    with pytest.raises(PlanError, match=r"on_policy learns from text that the model writes, and \w+ writes none"):
        Heal(loss="on_policy").lessons(model, hierarchy, list(hierarchy.layers()), feeds(name, model, 1))
    for wrong in ({"tokens": 0}, {"teacher_share": 1.0}):
        with pytest.raises(PlanError, match=next(iter(wrong))):
            technique("heal", {"loss": "on_policy", **wrong})
