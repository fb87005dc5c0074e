"""SLEB finds what can go, and its losses are those of the models that are left."""

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import build

from gossamer.compress.structure import choose_blocks
from gossamer.core.errors import DataError, PlanError
from gossamer.data.batch import Batch
from gossamer.models.structure import hierarchy_of, read_matrix, write_matrix
from gossamer.models.surgery import drop_blocks


def opened(name, depth=None):
    model = build(name)
    if depth is not None:
        config = type(model.config).from_dict({**model.config.to_dict(), "num_hidden_layers": depth})
        torch.manual_seed(0)
        model = type(model)(config).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in key:
            parameter.mul_(5)
    hierarchy = hierarchy_of(model, model.config)
    return model, hierarchy, [Batch(inputs_for(name, model), torch.empty(0), (0, 1))]


def mute(model, hierarchy, path):
    """The block adds nothing: what its attention and its MLP write is 0."""
    block = next(block for block in hierarchy.blocks() if block.path == path)
    for layer in block.layers:
        if layer.path.split(".")[-1] in ("o_proj", "down_proj", "out_proj", "fc2"):
            write_matrix(model, layer, torch.zeros_like(read_matrix(model, layer)))


def paths_of(hierarchy, modality):
    return [block.path for block in hierarchy.blocks() if block.path.startswith(modality)]


def divergence(model, other, batch):
    with torch.no_grad():
        p, q = (m(**batch.inputs).logits.double().log_softmax(-1) for m in (model, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(("name", "modality"), [("llama", "language"), ("clip", "text"), ("whisper", "language")])
def test_a_block_that_does_nothing_goes_first(name, modality):
    for number in (0, 1):
        model, hierarchy, batches = opened(name)
        path = f"{modality}.blocks.{number}"
        mute(model, hierarchy, path)
        for key, parameter in model.named_parameters():  # the biases of what it writes
            if parameter.dim() == 1 and "bias" in key:
                parameter.zero_()
        chosen = choose_blocks(model, hierarchy, batches, 1, paths_of(hierarchy, modality))
        assert list(chosen) == [path]
        assert chosen[path] < 1e-6


def test_each_round_takes_the_block_that_costs_least_by_brute_force():
    model, hierarchy, batches = opened("llama", 5)
    mute(model, hierarchy, "language.blocks.3")
    chosen = choose_blocks(model, hierarchy, batches, 3, paths_of(hierarchy, "language"))
    gone = []
    for path, loss in chosen.items():
        left = [other for other in paths_of(hierarchy, "language") if other not in gone]
        losses = {
            other: divergence(model, drop_blocks(model, hierarchy, [*gone, other]).model, batches[0]) for other in left
        }
        assert path == min(losses, key=losses.__getitem__)
        assert loss == pytest.approx(losses[path], rel=1e-3, abs=1e-6)
        gone.append(path)
    assert gone[0] == "language.blocks.3"
    assert model.config.num_hidden_layers == 5


def test_only_candidates_go():
    model, hierarchy, batches = opened("llama", 4)
    mute(model, hierarchy, "language.blocks.0")
    inner = paths_of(hierarchy, "language")[1:-1]
    assert set(choose_blocks(model, hierarchy, batches, 2, inner)) == set(inner)


def test_a_block_that_must_stay_is_passed_over():
    model, hierarchy, batches = opened("qwen3_vl")
    mute(model, hierarchy, "language.blocks.0")
    paths = paths_of(hierarchy, "language")
    assert list(choose_blocks(model, hierarchy, batches, 1, paths)) == ["language.blocks.1"]
    with pytest.raises(PlanError, match="only 0 of the 1 blocks"):
        choose_blocks(model, hierarchy, batches, 1, paths[:1])


def test_data_that_tells_nothing_is_refused():
    model, hierarchy, _ = opened("llava")
    with pytest.raises(DataError, match="needs calibration data"):
        choose_blocks(model, hierarchy, [], 1, paths_of(hierarchy, "vision"))
    blind = [Batch({"input_ids": torch.arange(3, 10)[None]}, torch.empty(0), (0,))]
    with pytest.raises(DataError, match=r"does not reach block vision\.blocks\.0"):
        choose_blocks(model, hierarchy, blind, 1, paths_of(hierarchy, "vision"))
