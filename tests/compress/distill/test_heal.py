"""Healing brings a compressed model nearer to its original on data it did not learn from, or changes nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.feeds import inputs_for
from tests.models.tiny import build
from torch.func import functional_call

from gossamer.compress.distill import Heal, Parts, token_log_probs
from gossamer.compress.distill.student import Free, Student
from gossamer.compress.quantize import Gptq
from gossamer.compress.statistics import Accumulator
from gossamer.core.errors import DataError, ModelError, PlanError
from gossamer.core.technique import build as technique
from gossamer.data.batch import Batch
from gossamer.models.low_rank import LowRank
from gossamer.models.structure import hierarchy_of, read_matrix, write_matrix


def original(name="llama"):
    """A tiny model whose weights are wide enough for it to have opinions."""
    model = build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() == 2 else 1)
    return model


def texts(seed, count=3, rows=4, length=10):
    ids = torch.randint(3, 90, (count, rows, length), generator=torch.Generator().manual_seed(seed))
    return [Batch({"input_ids": part}, part, tuple(range(rows))) for part in ids]


def feeds(name, model, count=6):
    """Batches of one family, their numbers drawn anew; its placeholders for images stay, other tokens are drawn too."""
    found = []
    for seed in range(count):
        draw = torch.Generator().manual_seed(seed)
        inputs = inputs_for(name, model)
        if name in ("vit", "bert", "whisper", "mamba"):
            inputs = {key: value.repeat(8, *[1] * (value.dim() - 1)) for key, value in inputs.items()}
        for key, value in inputs.items():
            if value.is_floating_point():
                inputs[key] = torch.randn(value.shape, generator=draw)
            elif key.endswith("input_ids"):
                inputs[key] = torch.where(value < 80, torch.randint(3, 80, value.shape, generator=draw), value)
        found.append(Batch(inputs, torch.empty(0), tuple(range(len(next(iter(inputs.values())))))))
    return found


class Case:
    """A random model with its linear layers in `part` at 2 bits by GPTQ, and what it gave before."""

    def __init__(self, heal, name="llama", part="language.blocks.*", learn=None, held=None, read=token_log_probs):
        self.heal, self.model = heal, original(name)
        self.hierarchy = hierarchy_of(self.model, self.model.config)
        self.layers = [one for one in self.hierarchy.select(part) if one.kind == "linear"]
        learn = learn or (texts(1) if name == "llama" else feeds(name, self.model))
        held = held or (texts(2) if name == "llama" else learn[:2])
        self.lessons = heal.lessons(self.model, self.hierarchy, self.layers, learn, read)
        self.held_out = heal.lessons(self.model, self.hierarchy, self.layers, held, read)
        self.parts = self.compress(learn)
        for layer in self.layers:
            write_matrix(self.model, layer, dense(self.parts[layer.path]))
        self.before = {key: value.clone() for key, value in self.model.state_dict().items()}

    def compress(self, batches):
        watched = {}
        for layer in self.layers:
            module = self.model.get_submodule(layer.module)
            keeper = Accumulator(layer.path, module)
            watched[layer.path] = keeper, module.register_forward_pre_hook(lambda _, a, k=keeper: k.add(a[0]))
        with torch.no_grad():
            for batch in batches:
                self.model(**batch.inputs)
        parts = {}
        for layer in self.layers:
            keeper, handle = watched[layer.path]
            handle.remove()
            weight = read_matrix(self.model, layer).float().clone()
            parts[layer.path] = Parts(Gptq(2, 8).quantize(weight, keeper.finish()).tensor)
        return parts

    def run(self):
        return self.heal.heal(self.model, self.hierarchy, self.parts, self.lessons, self.held_out)

    def loss(self):
        with torch.no_grad():
            return float(torch.cat([lesson.losses(self.model) for lesson in self.held_out]).mean())

    def unchanged(self):
        return all(torch.equal(value, self.before[key]) for key, value in self.model.state_dict().items())


class Pruned(Case):
    """As `Case`, with half of the weights of each layer set to zero instead."""

    def compress(self, batches):
        parts = {}
        for layer in self.layers:
            weight = read_matrix(self.model, layer).float().clone()
            parts[layer.path] = Parts(rest=weight * (weight.abs() >= weight.abs().median()))
        return parts


def dense(parts):
    found = parts.rest if parts.tensor is None else parts.tensor.dequantize()
    added = 0 if parts.low_rank is None else parts.low_rank.dense()
    return added if found is None else found + added


QUICK = {"steps": 12, "rate": 0.02}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "reverse"},
        {"top_k": 10, "temperature": 1.5},
        {"train": "lora", "rank": 2},
        {"loss": "features"},
    ],
    ids=str,
)
def test_held_out_loss_falls_and_the_model_computes_with_what_is_stored(settings):
    case = Case(Heal(**QUICK, **settings))
    healed = case.run()
    assert healed.after < 0.97 * healed.before
    assert healed.after == pytest.approx(case.loss(), abs=1e-7)
    assert not healed.notes
    for layer in case.layers:
        old, new = case.parts[layer.path].tensor, healed.parts[layer.path].tensor
        assert torch.equal(old.codes, new.codes)
        assert torch.equal(old.scales, new.scales) == (case.heal.train == "lora")
        assert (healed.parts[layer.path].low_rank is not None) == (case.heal.train == "lora")
        assert torch.allclose(read_matrix(case.model, layer), dense(healed.parts[layer.path]), atol=1e-7)
    learnt = {layer.tensor for layer in case.layers}
    for name, value in case.model.state_dict().items():
        vector = value.dim() == 1 and (case.heal.loss != "features" or "layers" in name)
        if name not in learnt:
            assert torch.equal(value, case.before[name]) != vector, name
            assert not vector or torch.equal(value, value.half().float()), "exactly storable"


def test_an_independent_measure_of_the_divergence_falls_too():
    teacher = original()
    case = Case(Heal(**QUICK, top_k=None))

    def kl():
        total = 0.0
        for batch in texts(2):
            with torch.no_grad():
                p, q = (one(**batch.inputs).logits.log_softmax(-1) for one in (teacher, case.model))
            total += float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))
        return total / 120

    before, healed = kl(), case.run()
    assert before == pytest.approx(healed.before, abs=1e-5)
    assert kl() == pytest.approx(healed.after, abs=1e-5)
    assert healed.after < healed.before


@pytest.mark.parametrize("train", ["scales", "lora"])
def test_what_does_not_help_on_held_out_data_changes_nothing(train):
    case = Case(Heal(**QUICK, train=train))
    draw = torch.Generator().manual_seed(5)
    noise = [(torch.randn(lesson.log_probs.shape, generator=draw) * 9).log_softmax(-1) for lesson in case.lessons]
    case.lessons = [replace(lesson, log_probs=wrong) for lesson, wrong in zip(case.lessons, noise, strict=True)]
    case.held_out = case.heal.lessons(case.model, case.hierarchy, case.layers, texts(2))  # its own: nothing is better
    healed = case.run()
    assert case.unchanged()
    assert healed.parts == case.parts, "the very same tensors"
    assert healed.after == healed.before == case.loss() == 0
    assert "did not help on held-out data" in healed.notes[0]


def test_an_early_state_is_kept_if_later_ones_are_worse():
    case = Case(Heal(steps=40, rate=0.9))
    healed = case.run()
    assert healed.after == pytest.approx(case.loss(), abs=1e-7)
    assert healed.after <= healed.before


def test_zeros_stay_zeros_and_other_weights_learn():
    case = Pruned(Heal(**QUICK, train="weights"))
    healed = case.run()
    assert healed.after < 0.9 * healed.before
    for layer in case.layers:
        old, new = case.parts[layer.path].rest, healed.parts[layer.path].rest
        assert torch.equal(new == 0, old == 0)
        assert float((new != old)[old != 0].float().mean()) > 0.5
        assert torch.equal(read_matrix(case.model, layer), new)
        assert torch.equal(new, new.half().float()), "exactly storable"


def test_only_what_is_free_moves_in_a_sparse_layer_with_scales_alone():
    case = Pruned(Heal(**QUICK))
    healed = case.run()
    for layer in case.layers:
        assert torch.equal(healed.parts[layer.path].rest, case.parts[layer.path].rest)
        assert torch.equal(read_matrix(case.model, layer), case.parts[layer.path].rest)


class Factored(Pruned):
    """As `Pruned`, with factors beside what is left."""

    def compress(self, batches):
        draw = torch.Generator().manual_seed(3)
        return {
            path: replace(
                parts,
                low_rank=LowRank(
                    torch.randn(parts.rest.shape[0], 3, generator=draw).half() / 50,
                    torch.randn(3, parts.rest.shape[1], generator=draw).half() / 50,
                ),
            )
            for path, parts in super().compress(batches).items()
        }


def test_factors_that_are_there_learn_themselves():
    case = Factored(Heal(**QUICK, train="lora", rank=7))
    healed = case.run()
    assert healed.after < healed.before
    for layer in case.layers:
        found = healed.parts[layer.path]
        assert found.low_rank.rank == 3
        assert not torch.equal(found.low_rank.left, case.parts[layer.path].low_rank.left)
        assert torch.allclose(read_matrix(case.model, layer), dense(found), atol=1e-7)


@pytest.mark.parametrize(
    ("name", "part", "settings"),
    [
        ("llava", "language.blocks.*", {}),
        ("llava", "vision.blocks.*", {"loss": "features"}),
        ("vit", "**", {}),
        ("bert", "**", {"train": "lora"}),
        ("whisper", "{audio,language}.**", {}),
        ("qwen3_vl", "{vision,language}.**", {}),
        ("mamba", "language.blocks.*.mixer.{in_proj,out_proj}", {}),
    ],
)
def test_other_families_are_healed_too(name, part, settings):
    case = Case(Heal(**QUICK, **settings), name, part)
    healed = case.run()
    assert healed.after < healed.before
    assert healed.after == pytest.approx(case.loss(), rel=1e-5)


def test_detection_logits_through_the_reading_of_their_task():
    def pairs(output, batch):
        logits = output.logits.float().reshape(-1)
        return torch.nn.functional.logsigmoid(torch.stack([-logits, logits], -1))

    healed = Case(Heal(**QUICK), "owlv2", "{vision,text}.blocks.*", read=pairs).run()
    assert healed.after < healed.before


def test_same_seed_gives_the_same_bytes_and_another_one_others():
    def bytes_of(seed):
        case = Case(Heal(**QUICK, train="lora", rank=2, seed=seed))
        healed = case.run()
        factors = [healed.parts[layer.path].low_rank for layer in case.layers]
        return [factor.left for factor in factors] + [factor.right for factor in factors]

    first, again, other = bytes_of(0), bytes_of(0), bytes_of(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def padded(filler):
    ids = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids = ids.masked_fill(mask == 0, filler)
    return [Batch({"input_ids": ids, "attention_mask": mask}, ids, (0, 1, 2))]


@pytest.mark.parametrize("loss", ["forward", "features"])
def test_padding_does_not_count(loss):
    results = []
    for filler in (0, 77):
        case = Case(Heal(**QUICK, loss=loss), learn=padded(filler), held=padded(filler))
        assert len(case.lessons[0].losses(case.model)) == 23 * (2 if loss == "features" else 1)
        case.parts = results[0][0].parts if results else case.parts
        for layer in case.layers:
            write_matrix(case.model, layer, dense(case.parts[layer.path]))
        results.append((case, case.run()))
    (_, one), (_, other) = results
    assert one.before == other.before
    assert one.after == other.after < one.before
    assert all(torch.equal(one.parts[path].tensor.scales, other.parts[path].tensor.scales) for path in one.parts)


@pytest.mark.parametrize("train", ["scales", "lora"])
def test_gradients_are_those_of_a_dense_formulation(train):
    case = Case(Heal(train=train, rank=2))
    student = Student(case.model, case.hierarchy, case.parts, train, 2, torch.Generator().manual_seed(0))
    for one in student.free:
        torch.nn.init.normal_(one.change, std=0.1, generator=torch.Generator().manual_seed(one.change.numel()))
    with student.running():
        loss = case.lessons[0].losses(case.model).mean()
        found = torch.autograd.grad(loss, [one.change for one in student.free])
    assert case.unchanged(), "nothing but the inside has seen other weights"
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in case.model.parameters())

    held = {name: value.detach().clone().requires_grad_(True) for name, value in numbers(student, case, train).items()}
    weights = {}
    for layer in case.layers:
        tensor = case.parts[layer.path].tensor
        if train == "scales":
            wide = held[layer.path].repeat_interleave(8, dim=1)
            weights[layer.tensor] = tensor.codes.float() * wide
        else:
            weights[layer.tensor] = tensor.dequantize() + held[layer.path + ".left"] @ held[layer.path + ".right"]
    vectors = {name: value for name, value in held.items() if name.endswith("norm.weight")}
    logits = functional_call(case.model, {**weights, **vectors}, kwargs=texts(1)[0].inputs).logits.reshape(40, -1)
    wanted = original()(**texts(1)[0].inputs).logits.reshape(40, -1).log_softmax(-1)
    dense_loss = torch.nn.functional.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="sum") / 40
    assert dense_loss.item() == pytest.approx(loss.item(), rel=1e-4)
    wanted = torch.autograd.grad(dense_loss, list(held.values()))
    for one, slope, dense_slope in zip(student.free, found, wanted, strict=True):
        scaled = dense_slope * one.unit
        assert torch.allclose(slope, scaled, atol=1e-4 * float(scaled.abs().max()) + 1e-9)


def numbers(student, case, train):
    """The stored numbers in the order of what is free."""
    if train == "scales":
        names = [layer.path for layer in case.hierarchy.layers() if layer.path in case.parts]
    else:
        names = [
            f"{layer.path}.{side}"
            for layer in case.hierarchy.layers()
            if layer.path in case.parts
            for side in ("left", "right")
        ]
    vectors = [name for name, value in case.model.named_parameters() if value.dim() == 1]
    return dict(zip(names + vectors, (one.stored().float() for one in student.free), strict=True))


def test_a_new_matrix_changes_nothing_at_first():
    case = Case(Heal())
    student = Student(case.model, case.hierarchy, case.parts, "lora", 4, torch.Generator().manual_seed(0))
    with student.running():
        assert case.loss() == pytest.approx(Case(Heal()).loss(), abs=1e-7)
    assert all(float(parts.low_rank.dense().abs().max()) == 0 for parts in student.parts().values())


@given(exponent=st.floats(-7, 4), change=st.floats(-3, 3))
def test_a_free_number_is_a_float16_that_is_never_lost(exponent, change):
    base = torch.tensor([10.0**exponent, -(10.0**exponent), 0.0]).half().float()
    free = Free(base, base.abs())
    with torch.no_grad():
        free.change.fill_(change)
    value = free.value()
    assert torch.equal(value, free.stored().float())
    assert torch.equal(value == 0, base == 0)
    assert bool(torch.isfinite(value).all())
    (slope,) = torch.autograd.grad(value.sum(), free.change)
    assert torch.equal(slope, base.abs())


def test_wrong_settings_and_missing_data_are_named():
    for settings_ in ({"temperature": 3.0}, {"rate": 0.0}, {"steps": 0}, {"top_k": 0}, {"rank": 0}):
        with pytest.raises(PlanError, match=next(iter(settings_))):
            technique("heal", settings_)
    assert technique("heal", {"train": "lora", "top_k": None}).phase == "heal"
    case = Case(Heal(**QUICK))
    with pytest.raises(PlanError, match="none of the selected layers"):
        case.heal.heal(case.model, case.hierarchy, {}, case.lessons, case.held_out)
    with pytest.raises(DataError, match="held-out"):
        case.heal.heal(case.model, case.hierarchy, case.parts, case.lessons, [])
    with pytest.raises(PlanError, match="block"):
        Heal(loss="features").lessons(case.model, case.hierarchy, case.hierarchy.select("head.*"), texts(1))
    with pytest.raises(ModelError, match="no logits"):
        Heal().lessons(case.model.model, case.hierarchy, case.layers, texts(1))
    with torch.no_grad():
        case.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="NaN"):
        case.heal.lessons(case.model, case.hierarchy, case.layers, texts(1))
    with pytest.raises(ModelError, match="not both"):
        Parts(next(iter(case.parts.values())).tensor, torch.zeros(2, 2))
