"""Pruning channels and heads: what goes is what matters least, and what stays makes up for it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.feeds import inputs_for
from tests.models.tiny import build

from gossamer.compress.structure import PruneChannels, PruneHeads, selected_blocks
from gossamer.compress.structure.importance import importance
from gossamer.compress.structure.narrowing import refit
from gossamer.compress.structure.outputs import loss_of
from gossamer.compress.structure.prune_channels import spread_channels
from gossamer.core.errors import DataError, PlanError
from gossamer.data.batch import Batch
from gossamer.models.reloading import plain
from gossamer.models.structure import hierarchy_of, read_matrix, write_matrix
from gossamer.models.surgery import channels_of, heads_of


def opened(name, rows=2):
    model = build(name)
    for key, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in key:
            parameter.mul_(6)
    inputs = inputs_for(name, model)
    return model, hierarchy_of(model, model.config), [Batch(inputs, torch.empty(0), tuple(range(rows)))]


def text(count, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 90, (count, 24), generator=generator)
    return [Batch({"input_ids": ids[i : i + 1]}, ids[i : i + 1], (i,)) for i in range(count)]


def logits(model, batches):
    with torch.no_grad():
        return torch.cat([model(**batch.inputs).logits for batch in batches])


@pytest.mark.parametrize("kind", ["magnitude", "taylor", "taylor2"])
@pytest.mark.parametrize(("name", "tower"), [("llama", "language"), ("llava", "vision"), ("whisper", "audio")])
def test_channels_that_do_nothing_are_the_ones_that_go(name, tower, kind):
    model, hierarchy, batches = opened(name)
    blocks = selected_blocks(hierarchy, f"{tower}.blocks.*")
    units = channels_of(model, blocks)
    for number, layer in enumerate(units.readers.values()):
        for tensor in (part.tensor for part in units.parts[blocks[number].path]):
            parameter = model.get_parameter(tensor)
            dim = next(part.dim for part in units.parts[blocks[number].path] if part.tensor == tensor)
            parameter.index_fill_(dim, torch.arange(number, 16 + number), 0.0)
        assert not read_matrix(model, layer)[:, number : 16 + number].any()
    before = model(**batches[0].inputs)
    smaller = PruneChannels(keep=1 / 3, align=8, importance=kind, ridge=None).reshape(model, hierarchy, blocks, batches)
    after = model(**batches[0].inputs)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    assert smaller.parameters < hierarchy.parameters
    assert {
        layer.columns for layer in channels_of(model, selected_blocks(smaller, f"{tower}.blocks.*")).readers.values()
    } == {8}


def test_heads_that_do_nothing_are_the_ones_that_go(tmp_path):
    model, hierarchy, batches = opened("qwen2")
    blocks = selected_blocks(hierarchy, "language.**")
    units = heads_of(model, blocks)
    for number, (path, layer) in enumerate(units.readers.items()):
        weight = read_matrix(model, layer).clone()
        weight[:, units.columns(path)[number]] = 0
        write_matrix(model, layer, weight)
    before = logits(model, batches)
    smaller = PruneHeads(keep=0.5, importance="taylor").reshape(model, hierarchy, blocks, batches)
    torch.testing.assert_close(logits(model, batches), before, rtol=1e-4, atol=1e-3)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim) == (2, 1, 4)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain(tmp_path).eval(), batches), logits(model, batches), rtol=0, atol=1e-5)
    assert smaller.parameters == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


@pytest.mark.parametrize("technique", [PruneChannels(keep=0.5, align=4), PruneHeads(keep=0.5)])
def test_the_ridge_lowers_the_error(technique):
    train, held_out = text(16, 0), text(16, 1)
    errors = {}
    for ridge in (None, 0.01):
        model, hierarchy, _ = opened("llama")
        wanted = logits(model, train), logits(model, held_out)
        settings_of = {**vars(technique), "ridge": ridge, "importance": "magnitude"}
        type(technique)(**settings_of).reshape(model, hierarchy, selected_blocks(hierarchy, "language.**"), train)
        found = logits(model, train), logits(model, held_out)
        errors[ridge] = [float((a - b).square().sum()) for a, b in zip(wanted, found, strict=True)]
    assert errors[0.01][0] < 0.9 * errors[None][0]
    assert errors[0.01][1] < errors[None][1]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([1e-4, 0.01, 1.0]))
def test_refitted_columns_are_never_worse_and_solve_the_ridge_problem(seed, count, ridge):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, 10, generator=generator) @ torch.randn(10, 10, generator=generator)
    weight = torch.randn(5, 10, generator=generator)
    columns = torch.randperm(10, generator=generator)[:count].sort().values
    hessian = inputs.T @ inputs / len(inputs)
    found = refit(weight, columns, hessian, ridge)

    def error(kept):
        return (inputs @ weight.T - inputs[:, columns] @ kept.T).double().square().mean(0).sum()

    assert error(found) <= error(weight[:, columns]) * (1 + 1e-5)
    strength = ridge * hessian[columns][:, columns].diagonal().mean().double()
    rows = torch.cat([inputs[:, columns].double() / len(inputs) ** 0.5, strength.sqrt() * torch.eye(count).double()])
    targets = torch.cat([(inputs @ weight.T).double() / len(inputs) ** 0.5, strength.sqrt() * weight[:, columns].T])
    expected = torch.linalg.lstsq(rows, targets).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_taylor_is_what_the_loss_changes_by():
    """Against finite differences: a channel scaled by 1 - ε changes the loss by ε Σ w g."""
    model, hierarchy, _ = opened("llama")
    batches = text(1, 0)
    blocks = selected_blocks(hierarchy, "language.blocks.*")
    units = channels_of(model, blocks)
    scores = importance(model, units, "taylor", batches)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    layer = units.readers["language.blocks.1"]
    weight = read_matrix(model, layer)
    step, changes = 1e-2, []
    for channel in range(4):
        column = weight[:, channel].clone()
        sides = []
        for factor in (1 + step, 1 - step):
            weight[:, channel] = column * factor
            with torch.no_grad():
                sides.append(float(loss_of(model, batches[0])))
        weight[:, channel] = column
        changes.append(abs(sides[0] - sides[1]) / (2 * step))
    # |Σ w g| over the column is at most Σ |w g| over the whole channel.
    assert all(
        change <= float(score) + 1e-4 for change, score in zip(changes, scores["language.blocks.1"][:4], strict=True)
    )
    assert max(changes) > 0
    # A channel that the model can do without in both orders scores 0.
    weight[:, 0] = 0
    for name in ("gate_proj", "up_proj"):
        model.get_submodule(f"model.layers.1.mlp.{name}").weight[0] = 0
    for kind in ("taylor", "taylor2"):
        assert float(importance(model, units, kind, batches)["language.blocks.1"][0]) == 0


def test_both_orders_are_those_of_finite_differences_of_every_weight():
    """On one channel of a block: Σ |w g| and Σ |w g - ½ w² F| with g and F by central differences of the loss."""
    model, hierarchy, _ = opened("llama")
    model.lm_head.weight.mul_(30)  # steep enough for the orders to differ
    model.double()

    def loss(batch):
        ids = batch.inputs["input_ids"]
        return float(torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]))

    batches = text(2, 0)
    units = channels_of(model, selected_blocks(hierarchy, "language.blocks.*"))
    found = {kind: importance(model, units, kind, batches)["language.blocks.1"][5] for kind in ("taylor", "taylor2")}
    wanted, step = {"taylor": 0.0, "taylor2": 0.0}, 1e-3
    for name, index in (("gate_proj", (5,)), ("up_proj", (5,)), ("down_proj", (slice(None), 5))):
        weights = model.get_submodule(f"model.layers.1.mlp.{name}").weight[index]
        for place in range(len(weights)):
            weight, losses = float(weights[place]), []
            for moved in (weight + step, weight - step):
                weights[place] = moved
                losses.append([loss(batch) for batch in batches])
            weights[place] = weight
            slopes = (torch.tensor(losses[0]).double() - torch.tensor(losses[1])) / (2 * step)
            wanted["taylor"] += abs(weight * float(slopes.mean()))
            wanted["taylor2"] += abs(weight * float(slopes.mean()) - weight**2 * float(slopes.square().mean()) / 2)
    assert float(found["taylor"]) == pytest.approx(wanted["taylor"], rel=2e-3)
    assert float(found["taylor2"]) == pytest.approx(wanted["taylor2"], rel=2e-3)
    assert abs(wanted["taylor2"] / wanted["taylor"] - 1) > 0.01, "the orders differ, or this shows nothing"


@torch.enable_grad()
def test_second_order_follows_its_formula():
    model, hierarchy, _ = opened("llama")
    batches = text(3, 0)
    units = channels_of(model, selected_blocks(hierarchy, "language.blocks.*"))
    found = importance(model, units, "taylor2", batches)["language.blocks.0"]
    expected = torch.zeros(24)
    for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        weight = model.get_submodule(f"model.layers.0.mlp.{name}").weight.requires_grad_(True)
        gradients = []
        for batch in batches:
            ids = batch.inputs["input_ids"]
            loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
            gradients.append(torch.autograd.grad(loss, weight)[0])
        weight.requires_grad_(False)
        g = torch.stack(gradients)
        score = (weight * g.mean(0) - weight**2 * g.square().mean(0) / 2).abs()
        expected += score.sum(1 - dim)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_padding_and_labels_decide_what_text_counts():
    model, _, _ = opened("llama")
    ids = torch.randint(3, 90, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    none = torch.empty(0)
    padded = loss_of(model, Batch({"input_ids": ids, "attention_mask": mask}, none, (0, 1)))
    garbled = torch.where(mask.bool(), ids, 7)
    assert torch.equal(padded, loss_of(model, Batch({"input_ids": garbled, "attention_mask": mask}, none, (0, 1))))
    labels = ids.clone()
    labels[:, :6] = -100
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(model(ids).logits[:, 5:-1].flatten(0, 1), ids[:, 6:].flatten())
    torch.testing.assert_close(loss_of(model, Batch({"input_ids": ids}, labels, (0, 1))), wanted)


def test_what_cannot_be_is_refused_in_one_sentence():
    model, hierarchy, batches = opened("llama")
    every = selected_blocks(hierarchy, "language.**")
    half = selected_blocks(hierarchy, "language.blocks.0")
    with pytest.raises(PlanError, match=r"select language\.blocks\.1 too"):
        PruneChannels(align=8).reshape(model, hierarchy, half, batches)
    with pytest.raises(PlanError, match="24 channels in multiples of 64 leaves all"):
        PruneChannels().reshape(model, hierarchy, every, batches)
    with pytest.raises(DataError, match="with a ridge needs calibration data"):
        PruneChannels(align=8).reshape(model, hierarchy, every, [])
    for name, tower, technique in (
        ("clip", "vision", PruneHeads()),
        ("mixtral", "language", PruneChannels(align=8)),
    ):
        other, structure, feed = opened(name)
        with pytest.raises(PlanError, match=rf"{tower}\.blocks: (heads|channels) cannot be removed"):
            technique.reshape(other, structure, selected_blocks(structure, f"{tower}.**"), feed)
    assert hierarchy_of(model, model.config) == hierarchy
    every_free = {"keep": 0.5, "widths": "free"}
    for wrong in (
        {"keep": 0.0}, {"keep": 1.0}, {"align": 0}, {"ridge": 0.0}, {**every_free, "minimum": 0.6},
        {**every_free, "minimum": -0.1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="cannot be"):
            PruneChannels(**wrong)


@settings(max_examples=60)
@given(
    st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 20), st.sampled_from([1, 3, 8]), st.floats(0, 1),
    st.floats(0, 1),
)  # fmt: skip
def test_channels_are_spread_exactly_and_best(seed, blocks, groups, align, share, minimum):
    """Against all ways of spreading them, where these are few; the sum, the alignment and the minimum always hold."""
    generator = torch.Generator().manual_seed(seed)
    whole, width = groups * align, max(1, round(share * groups)) * align
    scores = {f"b{n}": torch.rand(whole, generator=generator) ** 4 * 10.0**n for n in range(blocks)}
    counts = spread_channels(scores, width, align, minimum)
    assert list(counts) == list(scores)
    assert sum(counts.values()) == width * blocks
    least = min(width, math.ceil(max(minimum * whole, 1) / align) * align)
    assert all(least <= count <= whole and count % align == 0 for count in counts.values())

    def worth(choice):
        return sum(
            float((score / score.mean().sqrt()).topk(count).values.double().sum())
            for score, count in zip(scores.values(), choice, strict=True)
        )

    if groups**blocks <= 3000:
        every = itertools.product(range(least, whole + 1, align), repeat=blocks)
        best = max(worth(choice) for choice in every if sum(choice) == width * blocks)
        assert worth(counts.values()) >= best * (1 - 1e-5)


@pytest.mark.parametrize(("name", "tower"), [("llama", "language"), ("vit", "vision"), ("llava", "vision")])
def test_free_widths_follow_what_matters_at_the_same_size(name, tower):
    parameters, errors = {}, {}
    for widths in ("uniform", "free"):
        model, hierarchy, batches = opened(name)
        blocks = selected_blocks(hierarchy, f"{tower}.blocks.*")
        units = channels_of(model, blocks)
        for part in units.parts[blocks[1].path]:  # of the second block 4 channels do anything
            model.get_parameter(part.tensor).index_fill_(part.dim, torch.arange(4, 24), 0.0)
        before = logits(model, batches)
        technique = PruneChannels(keep=0.5, align=4, widths=widths, minimum=0.1)
        smaller = technique.reshape(model, hierarchy, blocks, batches)
        parameters[widths] = smaller.parameters
        readers = {layer.path for layer in units.readers.values()}
        found = [layer.columns for layer in smaller.layers() if layer.path in readers]
        assert found == ([20, 4] if widths == "free" else [12, 12])
        errors[widths] = float((logits(model, batches) - before).square().sum())
    assert parameters["free"] == parameters["uniform"]
    assert errors["free"] < errors["uniform"]


def test_free_widths_may_leave_blocks_alone():
    model, hierarchy, batches = opened("llama")
    blocks = selected_blocks(hierarchy, "language.blocks.0")
    kept = model.model.layers[1].mlp.down_proj.weight.clone()
    PruneChannels(keep=0.5, align=4, widths="free").reshape(model, hierarchy, blocks, batches)
    assert model.model.layers[0].mlp.down_proj.weight.shape == (16, 12)
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, kept)
    assert model.config.intermediate_size == 24
    assert set(model.config.gossamer_widths) > {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up")}


def test_no_data_is_needed_for_magnitudes_alone():
    model, hierarchy, batches = opened("llama")
    technique = PruneChannels(keep=0.5, align=4, importance="magnitude", ridge=None)
    assert technique.needs == "nothing"
    technique.reshape(model, hierarchy, selected_blocks(hierarchy, "language.**"), [])
    assert model.config.intermediate_size == 12
    assert torch.isfinite(logits(model, batches)).all()


def test_the_same_data_gives_the_same_weights():
    states = []
    for _ in range(2):
        model, hierarchy, _ = opened("llama")
        blocks = selected_blocks(hierarchy, "language.**")
        PruneChannels(keep=0.5, align=4, importance="taylor2").reshape(model, hierarchy, blocks, text(2, 0))
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
