"""Permuting channels keeps every family's function, and leaves n:m pruning more of what matters."""

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import BUILDERS, build

from gossamer.compress.apply import apply_steps
from gossamer.compress.calibrate import Stream, collect
from gossamer.compress.presets import preset_steps
from gossamer.compress.prune import Magnitude, Permute, Ria, Wanda
from gossamer.compress.prune.permutation import retained
from gossamer.compress.prune.permute import reorder
from gossamer.compress.transform.trial import change, results
from gossamer.core.errors import DataError, PlanError
from gossamer.core.technique import build as technique
from gossamer.data.batch import Batch
from gossamer.engine.forward import forward
from gossamer.engine.walk import Walk
from gossamer.evaluate.tasks import open_task
from gossamer.models.open import open_model
from gossamer.models.structure import hierarchy_of, read_matrix
from gossamer.models.surgery import Part


def opened(name, wide=True):
    """A model in float64, so that rounding hides nothing; norms and biases are not at 1 and 0 as fresh ones are."""
    torch.manual_seed(0)
    model = build(name).double() if wide else build(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            elif parameter.dim() == 2 and "embed" not in key:
                parameter.mul_(4)
    inputs = {
        key: value.double() if wide and value.is_floating_point() else value
        for key, value in inputs_for(name, model).items()
    }
    return model, hierarchy_of(model, model.config), Batch(inputs, torch.empty(0), (0, 1))


MOVES = {
    "llama": {"gate_proj", "up_proj", "down_proj", "v_proj", "o_proj"},
    "vit": {"fc1", "fc2", "v_proj", "o_proj"},
    "whisper": {"fc1", "fc2", "v_proj", "out_proj"},
    "mixtral": {"v_proj", "o_proj"},
    "mamba": set(),
}


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_familys_function_stays(name):
    wide = name not in ("mixtral", "qwen2_moe", "qwen3_moe")  # whose expert kernels know no float64
    model, hierarchy, batch = opened(name, wide)
    before = results(forward(model, batch.inputs))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    (note,) = Permute("1:2").transform(model, hierarchy, list(hierarchy.layers()), [batch], {})
    assert change(before, results(forward(model, batch.inputs))) < (1e-9 if wide else 1e-5)
    moved = {key.split(".")[-2] for key, value in model.state_dict().items() if not torch.equal(value, weights[key])}
    assert ("nothing was permuted" in note) == (not moved) == (name == "mamba")
    for key, value in model.state_dict().items():
        assert torch.equal(value.flatten().sort().values, weights[key].flatten().sort().values), "only places change"
    assert moved == MOVES.get(name, moved)


@pytest.mark.parametrize(("score", "pruner"), [("ria", Ria), ("wanda", Wanda), ("magnitude", Magnitude)])
@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_no_layer_keeps_less_of_its_score(score, pruner, pattern):
    kept, width = pruner(pattern=pattern).groups

    def shares(model, hierarchy, batch):
        found = {}
        walk = Walk(model, hierarchy, batch.inputs)
        stream = Stream(walk, [batch])
        while not stream.last:
            stream.advance()
            layers = walk.stages[stream.step].block.layers
            known = collect(model, stream, layers)
            for layer in layers:
                scores, _ = pruner(pattern=pattern).scores(read_matrix(model, layer).float(), known[layer.path])
                found[layer.path] = retained(scores, kept, width)
        return found

    model, hierarchy, batch = opened("llama", wide=False)
    before, logits = shares(model, hierarchy, batch), model(**batch.inputs).logits
    Permute(pattern, score).transform(model, hierarchy, hierarchy.select("language.**"), [batch], {})
    after = shares(model, hierarchy, batch)
    assert float((model(**batch.inputs).logits - logits).abs().max()) < 1e-5
    assert all(after[path] > before[path] - 1e-5 for path in before)
    for path in before:
        reads_inside = path.endswith("down_proj")
        assert (after[path] > before[path] + 1e-3) == reads_inside or path.endswith("o_proj")


def test_two_of_four_costs_a_real_model_less():
    losses = {}
    for preset in ("ria-2:4", "permute+ria-2:4"):
        model = open_model("tiny-lm")
        texts = [open_task("text", name, model) for name in ("validation", "heldout")]
        learn, test = (task.subset(range(8)) for task in texts)
        batch = next(iter(learn.batches(8)))
        with torch.no_grad():
            wanted = model.model(**batch.inputs).logits
        steps = preset_steps(preset, model.hierarchy)
        if preset.startswith("permute"):
            Permute("2:4").transform(model.model, model.hierarchy, list(model.hierarchy.layers()), [batch], {})
            with torch.no_grad():
                found = model.model(**batch.inputs).logits
            assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
            steps = steps[1:]
        apply_steps(model.model, model.hierarchy, steps, [batch])
        with torch.no_grad():
            losses[preset] = float(
                torch.cat(
                    [test.losses(test.log_probs(model.model(**each.inputs), each), each) for each in test.batches(8)]
                ).mean()
            )
    assert losses["permute+ria-2:4"] < losses["ria-2:4"]


def test_an_order_reaches_every_part_of_a_channel():
    layer = torch.nn.Linear(6, 2)
    before = layer.weight.detach().clone()
    part = Part("weight", 1, torch.tensor([[0, 3], [1, 4], [2, 5]]))
    reorder(layer, (part,), torch.tensor([2, 0, 1]))
    assert torch.equal(layer.weight, before[:, [2, 0, 1, 5, 3, 4]])


def test_what_cannot_be_is_said():
    for pattern in ("4:2", "2", ""):
        with pytest.raises(PlanError, match="pattern cannot be"):
            technique("permute", {"pattern": pattern})
    model, hierarchy, batch = opened("llama", wide=False)
    layers = hierarchy.select("language.**")
    with pytest.raises(DataError, match="permute needs calibration data"):
        Permute().transform(model, hierarchy, layers, [], {})
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    queries = hierarchy.select("language.**.q_proj")
    assert "nothing was permuted" in Permute().transform(model, hierarchy, queries, [batch], {})[0]
    assert "nothing was permuted" in Permute("5:7").transform(model, hierarchy, layers, [batch], {})[0]
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
