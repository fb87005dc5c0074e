"""Learned scales and shifts keep the function, and bring a rounded block closer to what it was, or stay at 1 and 0."""

import pytest
import torch
from tests.compress.transform.test_rotate import batch_of, shaken
from tests.models.feeds import inputs_for
from tests.models.tiny import BUILDERS

from gossamer.compress.calibrate import Stream
from gossamer.compress.links import find_links, shiftable
from gossamer.compress.passes import Aim
from gossamer.compress.quantize import RoundToNearest
from gossamer.compress.transform.learned_scales import LearnedScales, _moved, _Moving
from gossamer.compress.transform.trial import change, results
from gossamer.core.errors import DataError, PlanError
from gossamer.core.technique import build as technique
from gossamer.engine.forward import forward as run
from gossamer.engine.walk import Walk
from gossamer.models.inputs import InputGrid
from gossamer.models.packed import Scheme
from gossamer.models.structure import hierarchy_of, read_matrix


def scaled(name, scheme=Scheme(3), grid=None, seed=0, **settings):
    model, _ = shaken(name, seed)
    inputs, hierarchy = inputs_for(name, model), hierarchy_of(model, model.config)
    layers = [layer for block in hierarchy.blocks() for layer in block.layers]
    before, weights = results(run(model, inputs)), {key: value.clone() for key, value in model.state_dict().items()}
    aims = {layer.path: Aim(scheme, grid) for layer in layers if layer.kind == "linear"}
    notes = LearnedScales(**settings).transform(model, hierarchy, layers, [batch_of(inputs)], aims)
    return model, change(before, results(run(model, inputs))), weights, notes


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_the_function_stays(name):
    *_, changed, _, _ = scaled(name, iterations=4, rate=0.05)
    assert changed < 1e-4


@pytest.mark.parametrize("name", ["llama", "vit", "whisper"])
def test_rounded_blocks_come_closer(name):
    """The whole model, rounded to nearest, too: what is learnt on blocks adds up."""
    reference, _ = shaken(name)
    inputs = inputs_for(name, reference)
    model, changed, weights, _ = scaled(name, Scheme(2), iterations=80, rate=0.02)
    assert changed < 1e-4
    assert any(not torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    wanted, errors = results(run(reference, inputs)), []
    for one in (reference, model):
        hierarchy = hierarchy_of(one, one.config)
        for layer in (layer for block in hierarchy.blocks() for layer in block.layers if layer.kind == "linear"):
            tensor = RoundToNearest(2).quantize(read_matrix(one, layer), None).tensor
            one.get_parameter(layer.tensor).copy_(tensor.dequantize())
        found = results(run(one, inputs))
        errors.append(sum(float((a - b).square().mean()) for a, b in zip(found, wanted, strict=True)))
    assert errors[1] < errors[0]


def moving_of(name):
    model, _ = shaken(name)
    inputs, hierarchy = inputs_for(name, model), hierarchy_of(model, model.config)
    stream = Stream(Walk(model, hierarchy, inputs), [batch_of(inputs)])
    stream.advance()
    block = stream.walk.stages[0].block
    links = find_links(model, stream.walk, stream.entries[0], block)
    return model, links, [shiftable(model, stream.walk, stream.entries[0], link) for link in links]


def test_shifts_where_both_ends_have_biases_and_nothing_bends_between():
    _, links, sizes = moving_of("vit")
    ends = {link.producer.rpartition(".")[2]: size > 0 for link, size in zip(links, sizes, strict=True)}
    assert sum(ends.values()) >= 3, "both norms, and values"
    assert not any(moving_of("llama")[2])


def test_what_is_learnt_is_what_is_folded():
    model, links, sizes = moving_of("vit")
    draw = torch.Generator().manual_seed(0)
    moving = [_Moving.of(link, size) for link, size in zip(links, sizes, strict=True)]
    with torch.no_grad():
        for unknown in [unknown for one in moving for unknown in one.unknowns]:
            unknown.copy_(0.3 * torch.randn(unknown.shape, generator=draw))
    found = {name: value.detach().clone() for name, value in _moved(model, moving).items()}
    for one in moving:
        factors, shifts = one.now()
        if shifts is not None:
            one.link.shift(model, shifts)
        one.link.fold(model, factors)
    assert found
    for name, value in found.items():
        torch.testing.assert_close(value, model.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_rounded_inputs_count_and_the_same_bytes_come_again():
    states = [scaled("llama", grid=grid, iterations=8, rate=0.05)[0].state_dict() for grid in (None, None, InputGrid())]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_bad_requests():
    for settings in ({"iterations": 0}, {"rate": 0.0}):
        with pytest.raises(PlanError, match=f"{next(iter(settings))} cannot be"):
            technique("learned_scales", settings)
    model, _ = shaken("llama")
    hierarchy, inputs = hierarchy_of(model, model.config), inputs_for("llama", model)
    with pytest.raises(DataError, match="calibration data"):
        LearnedScales().transform(model, hierarchy, hierarchy.select("language.**"), [], {})
    with pytest.raises(PlanError, match="no later step quantises"):
        LearnedScales().transform(model, hierarchy, hierarchy.select("language.**"), [batch_of(inputs)], {})
    _, _, _, notes = scaled("bert", iterations=1)
    assert any("query" in note and "none were learnt" in note for note in notes)
