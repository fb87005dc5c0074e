"""SpinQuant keeps the function and refuses what `rotate` does, and rounding loses less than after a plain rotation."""

import pytest
import torch
from tests.compress.transform.test_rotate import CASES, REFUSED, batch_of, shaken, towers
from tests.models.feeds import inputs_for

from gossamer.compress.apply import apply_steps
from gossamer.compress.passes import Aim
from gossamer.compress.transform import spinquant
from gossamer.compress.transform.answers import Answer, lessons_of
from gossamer.compress.transform.spinquant import SpinQuant
from gossamer.compress.transform.trial import change, results
from gossamer.core.errors import PlanError
from gossamer.core.plan import Step
from gossamer.core.technique import build as technique
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward as run
from gossamer.evaluate.tasks import open_task
from gossamer.models.inputs import InputGrid, input_grid
from gossamer.models.open import open_model
from gossamer.models.packed import Scheme
from gossamer.models.structure import hierarchy_of


def spun(model, inputs, at="language.**", scheme=Scheme(3), grid=None, **settings):
    """The change of the output, and the notes, with all linear layers aimed at `scheme`."""
    hierarchy = hierarchy_of(model, model.config)
    aims = {layer.path: Aim(scheme, grid) for layer in hierarchy.layers() if layer.kind == "linear"}
    before = results(run(model, inputs))
    notes = SpinQuant(**settings).transform(model, hierarchy, hierarchy.select(at), [batch_of(inputs)], aims)
    return change(before, results(run(model, inputs))), notes


@pytest.mark.parametrize(("name", "tower"), [case for case in CASES if case not in REFUSED])
def test_the_function_stays(name, tower):
    model, _ = shaken(name)
    changed, notes = spun(model, inputs_for(name, model), f"{tower}.**", steps=2, rows=1)
    assert changed < 1e-4
    assert "learning took the rounded model's divergence from" in notes[-1]


@pytest.mark.parametrize(("name", "tower"), sorted(REFUSED))
def test_what_cannot_turn_is_refused_and_untouched(name, tower):
    model, _ = shaken(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(PlanError, match=f"{tower} cannot be rotated") as raised:
        spun(model, inputs_for(name, model), f"{tower}.**", steps=1)
    assert REFUSED[name, tower] in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_learnt_rotations_are_orthogonal(name, monkeypatch):
    seen = []
    learn = SpinQuant._learn

    def kept(self, *args):
        seen.append(learn(self, *args))
        return seen[-1]

    monkeypatch.setattr(SpinQuant, "_learn", kept)
    model, _ = shaken(name)
    spun(model, inputs_for(name, model), steps=20, rate=0.3)
    ((rotations, before, after),) = seen
    assert after < before
    for one in rotations:
        assert float((one @ one.T - torch.eye(len(one))).abs().max()) < 1e-5


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    states = []
    for seed in (0, 0, 1):
        model, _ = shaken("llava")
        spun(model, inputs_for("llava", model), steps=4, seed=seed)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


@pytest.fixture(scope="module")
def text():
    """64 pieces of 64 tokens that tiny-lm-draft was not trained on: half to learn from, the others to measure."""
    opened = open_model("tiny-lm-draft")
    task = open_task("text", "heldout", opened, limit=16)
    ids = torch.cat([batch.inputs["input_ids"] for batch in task.batches(16)])[:, :256].reshape(-1, 64)
    assert len(ids) == 64
    return ids[:32], ids[32:]


def test_a_trained_model_loses_less_than_after_a_plain_rotation(text):
    learnt_on, measured = text
    losses = {}
    for do in ("rotate", "spinquant"):
        opened = open_model("tiny-lm-draft")
        with torch.no_grad():
            reference = run(opened.model, {"input_ids": measured}).logits.log_softmax(-1)
        steps = [{"at": "language.**", "do": do}, {"at": "language.blocks.*", "do": "rtn", "bits": 2, "group": 32}]
        if do == "spinquant":
            steps[0] |= {"steps": 10, "rows": 8, "rate": 0.03}
        batch = Batch({"input_ids": learnt_on}, torch.empty(0), tuple(range(len(learnt_on))))
        apply_steps(opened.model, opened.hierarchy, [Step.model_validate(step) for step in steps], [batch])
        with torch.no_grad():
            log_probs = run(opened.model, {"input_ids": measured}).logits.log_softmax(-1)
        losses[do] = float((reference.exp() * (reference - log_probs)).sum(-1).mean())
    assert losses["spinquant"] < 0.9 * losses["rotate"]


def test_inputs_are_rounded_while_it_learns_and_not_after(monkeypatch):
    model, _ = shaken("llama")
    during = []
    learn = SpinQuant._learn

    def watched(self, model, *args):
        during.extend(input_grid(module) for module in model.modules())
        return learn(self, model, *args)

    monkeypatch.setattr(spinquant.SpinQuant, "_learn", watched)
    changed, _ = spun(model, inputs_for("llama", model), scheme=Scheme(4), grid=InputGrid("int", 4), steps=3)
    assert changed < 1e-4
    assert InputGrid("int", 4) in during
    assert all(input_grid(module) is None for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "vit", "owlv2", "qwen2_vl", "llava"])
def test_parts_of_batches_give_what_the_whole_gives(name):
    model, _ = shaken(name)
    batch = batch_of(inputs_for(name, model))
    parts, (whole,) = lessons_of(model, [batch], 8, 1), lessons_of(model, [batch], 8, 2)
    assert len(parts) == (1 if name == "qwen2_vl" else 2)
    assert all(float(lesson.losses(model).abs().max()) < 1e-5 for lesson in (*parts, whole))
    assert isinstance(whole, Answer) == (name == "owlv2")
    assert len(lessons_of(model, [batch] * 3, 3, 2)) == 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    if not isinstance(whole, Answer):  # whose losses are shares of what a part holds
        apart = torch.cat([lesson.losses(model) for lesson in parts])
        torch.testing.assert_close(apart, whole.losses(model), rtol=1e-3, atol=1e-5)


def test_bad_requests():
    for settings in ({"steps": 0}, {"rate": 0.0}, {"rate": 2.0}, {"samples": 0}, {"rows": 0}):
        with pytest.raises(PlanError, match=f"{next(iter(settings))} cannot be"):
            technique("spinquant", settings)
    model, _ = shaken("llama")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hierarchy = hierarchy_of(model, model.config)
    batches = [batch_of(inputs_for("llama", model))]
    with pytest.raises(PlanError, match="no later step quantises what it turns"):
        SpinQuant().transform(model, hierarchy, hierarchy.select("language.**"), batches, {})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert towers("llama") == ["language"]
