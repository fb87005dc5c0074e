"""Rows of a block's run: taken apart they give what the whole gives, and where they cannot be, the whole is run."""

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import build
from torch import nn

from gossamer.compress.passes import BlockRun
from gossamer.compress.quantize import blockwise
from gossamer.compress.quantize.blockwise import divides, learn, passing_round, sliced
from gossamer.engine.walk import Walk
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.structure import hierarchy_of


def runs_of(name, mask=False):
    """Each block of a family with a run through it of all examples, three where the family's inputs allow it."""
    model = build(name)
    inputs = inputs_for(name, model)
    if not name.startswith(("llava_", "qwen")):
        inputs = {key: torch.cat([value, value[:1].flip(-1)]) for key, value in inputs.items()}
    if mask:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][1, -3:] = 0
    walk = Walk(model, hierarchy_of(model, model.config), inputs)
    entry = walk.start(inputs)
    for number, stage in enumerate(walk.stages):
        output = walk.through(entry)
        target = output[0] if isinstance(output, tuple) else output
        keep = inputs["attention_mask"].bool() if mask else None
        yield (
            stage.block.path,
            model.get_submodule(stage.block.module),
            BlockRun(entry.args, entry.kwargs, target, keep),
        )
        if number + 1 < len(walk.stages):
            entry = walk.advance(entry, inputs)


def output_of(block, run):
    with torch.no_grad():
        output = block(*run.args, **run.kwargs)
    return output[0] if isinstance(output, tuple) else output


FAMILIES = ["llama", "gemma2", "llava", "owlv2", "vit", "whisper", "bert", "mamba", "mixtral"]
PADDED = ["llama", "gemma2", "bert"]


@pytest.mark.parametrize(("name", "masked"), [(name, False) for name in FAMILIES] + [(name, True) for name in PADDED])
def test_rows_apart_are_the_wholes_rows(name, masked):
    rows = torch.tensor([2, 0])
    for path, block, run in runs_of(name, masked):
        assert divides(block, run), path
        part = sliced(run, rows)
        assert torch.allclose(output_of(block, part), run.target[rows], rtol=1e-4, atol=1e-5), path
        assert torch.equal(part.target, run.target[rows])
        assert masked == (part.mask is not None)
        if masked:
            assert torch.equal(part.mask, run.mask[rows])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_pictures_in_one_sequence_are_run_whole(name):
    seen = {path.split(".")[0]: divides(block, run) for path, block, run in runs_of(name)}
    assert not seen["vision"]


class Turned(nn.Module):
    """A block that wants its second argument with the batch behind the positions."""

    def forward(self, hidden, bias):
        return hidden + bias.transpose(0, 1)


def test_other_layouts_are_run_whole():
    hidden, bias = torch.randn(3, 4, 5), torch.randn(4, 3, 5)
    run = BlockRun((hidden, bias), {}, hidden + bias.transpose(0, 1), None)
    assert not divides(Turned(), run)
    square = torch.randn(3, 3, 5)
    run = BlockRun((hidden[:, :3], square), {}, hidden[:, :3] + square.transpose(0, 1), None)
    assert not divides(Turned(), run), "cut along the wrong dimension"
    alone = sliced(run, torch.tensor([1]))
    assert alone.args[0].shape == (1, 3, 5)


def test_all_kinds_of_arguments_are_cut():
    batch, shared = torch.arange(6.0).reshape(3, 2), torch.arange(4.0)
    run = BlockRun(
        (batch, (batch, [shared])), {"a": {"b": batch}, "c": None, "d": 3, "e": torch.tensor(1.0)}, batch, None
    )
    part = sliced(run, torch.tensor([2]))
    assert torch.equal(part.args[0], batch[2:])
    assert torch.equal(part.args[1][0], batch[2:])
    assert part.args[1][1][0] is shared
    assert torch.equal(part.kwargs["a"]["b"], batch[2:])
    assert part.kwargs["c"] is None
    assert part.kwargs["d"] == 3
    assert torch.equal(part.kwargs["e"], torch.tensor(1.0))


def test_roundings_let_gradients_pass():
    values = torch.tensor([0.4, 1.6, -2.5], requires_grad=True)
    rounded = passing_round(values)
    assert torch.equal(rounded.detach(), values.detach().round())
    (slope,) = torch.autograd.grad(rounded.square().sum(), values)
    assert torch.equal(slope, 2 * values.detach().round())


class Stretched:
    """A weight of ones on a grid of whole numbers times a scale, which is the unknown."""

    def __init__(self, scale):
        self.scale = torch.tensor(scale, requires_grad=True)
        self.unknowns = (self.scale,)

    def soft(self):
        return torch.ones(4, 4) * self.scale

    def hard(self):
        codes, scales = torch.ones(4, 4, dtype=torch.int8), torch.full((4, 1), float(self.scale.detach())).half()
        return QuantizedTensor(Scheme(4), (4, 4), codes, scales)


def descended(monkeypatch, scale, rates, tokens=10**6):
    """What learning finds for a linear block whose best scale is 1, and how many rows each step saw."""
    monkeypatch.setattr(blockwise, "TOKENS_PER_STEP", tokens)
    block = nn.Linear(4, 4, bias=False).requires_grad_(False)
    block.weight.fill_(1.25)
    before, seen = block.weight.clone(), []
    block.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])) if torch.is_grad_enabled() else None)
    inputs = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0))
    runs = [BlockRun((part,), {}, part @ torch.ones(4, 4), None) for part in inputs.split(3)]
    layer = Stretched(scale)

    def move(step, slopes):
        layer.scale.sub_(slopes[0].sign(), alpha=rates[step])

    found = learn(block, {("weight", None): layer}, runs, len(rates), move)
    assert torch.equal(block.weight, before)
    return found, seen


def test_the_best_state_on_the_way_is_kept(monkeypatch):
    found, seen = descended(monkeypatch, 1.5, [0.25, 0.25, 0.0, 0.0, 0.0, 0.0, -0.5, 0.5])
    assert float(found["weight", None].scales[0]) == 1.0
    assert seen == [3] * 8
    found, _ = descended(monkeypatch, 1.5, [0.25, 0.25, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0])
    assert float(found["weight", None].scales[0]) == 1.0, "the end is worse than what was found half-way"


def test_nothing_is_returned_that_does_not_beat_the_present_roundings(monkeypatch):
    found, _ = descended(monkeypatch, 1.5, [0.125, 0.125])
    assert found == {}


@pytest.mark.parametrize(("tokens", "rows"), [(10, 2), (1, 1), (15, 3), (14, 2)])
def test_a_step_sees_as_many_rows_as_its_tokens_allow(monkeypatch, tokens, rows):
    _, seen = descended(monkeypatch, 1.5, [0.25, 0.25], tokens)
    assert seen == [rows] * 2
