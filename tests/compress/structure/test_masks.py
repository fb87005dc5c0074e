"""Learnt masks close what does nothing, hold to the share asked for, and leave the model as it was."""

from dataclasses import replace

import pytest
import torch
from tests.compress.structure.test_narrowing import logits, opened, text

from gossamer.compress.structure import PruneChannels, PruneHeads, selected_blocks
from gossamer.compress.structure.masks import chance, gated, learned
from gossamer.core.errors import DataError
from gossamer.data.batch import Batch
from gossamer.models.structure import read_matrix, write_matrix
from gossamer.models.surgery import channels_of, heads_of


def weaken(model, units, faint):
    """The columns that read these units, int64, become nearly 0 in every block."""
    for path, layer in units.readers.items():
        weight = read_matrix(model, layer).clone()
        weight[:, units.columns(path)[faint].flatten()] *= 1e-3
        write_matrix(model, layer, weight)


def wide(rows, seed):
    """One batch of texts."""
    ids = torch.cat([batch.inputs["input_ids"] for batch in text(rows, seed)])
    return [Batch({"input_ids": ids}, ids, tuple(range(rows)))]


@pytest.mark.parametrize(("name", "find", "faint"), [("llama", channels_of, [*range(3, 11)]), ("qwen2", heads_of, [1])])
def test_gates_of_what_hardly_matters_close(name, find, faint):
    model, hierarchy, _ = opened(name)
    units = find(model, selected_blocks(hierarchy, "language.blocks.*"))
    weaken(model, units, faint)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for gates in learned(model, units, wide(24, 0), 1 - len(faint) / units.count, 60, 0).values():
        closed = set(gates.argsort()[: len(faint)].tolist())
        assert len(closed & set(faint)) >= 0.8 * len(faint), "of random channels some hardly matter either"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "tower", "find"),
    [
        ("llava", "language", heads_of),
        ("vit", "vision", heads_of),
        ("whisper", "audio", channels_of),
        ("qwen2_5_vl", "language", channels_of),
    ],
)
def test_other_families_hold_the_share_too(name, tower, find):
    model, hierarchy, batches = opened(name)
    units = find(model, selected_blocks(hierarchy, f"{tower}.blocks.*"))
    for gates in learned(model, units, batches, 0.5, 60, 0).values():
        assert gates.shape == (units.count,)
        assert float(chance(gates).mean()) == pytest.approx(0.5, abs=0.15)


def test_a_shut_gate_is_a_unit_that_is_gone():
    model, hierarchy, _ = opened("qwen2")
    batches = text(2, 0)
    units = heads_of(model, selected_blocks(hierarchy, "language.blocks.*"))
    with gated(model, units, lambda path, rows: torch.tensor([[1.0, 0.0]]).expand(rows, -1)):
        found = logits(model, batches)
    for path, layer in units.readers.items():
        weight = read_matrix(model, layer).clone()
        weight[:, units.columns(path)[1]] = 0
        write_matrix(model, layer, weight)
    torch.testing.assert_close(logits(model, batches), found)


def test_the_seed_settles_everything_and_the_share_is_held():
    model, hierarchy, _ = opened("llama")
    units = channels_of(model, selected_blocks(hierarchy, "language.blocks.*"))
    first, again, other = (learned(model, units, text(4, 0), 0.75, 80, seed) for seed in (0, 0, 1))
    for path, gates in first.items():
        assert torch.equal(gates, again[path])
        assert not torch.equal(gates, other[path])
        assert float(chance(gates).mean()) == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize("technique", [PruneChannels, PruneHeads])
def test_what_is_learnt_is_what_goes(technique):
    model, hierarchy, _ = opened("llama")
    blocks = selected_blocks(hierarchy, "language.blocks.*")
    channels = technique is PruneChannels
    units = (channels_of if channels else heads_of)(model, blocks)
    weaken(model, units, list(range(units.count // 2)))
    before = logits(model, text(2, 0))
    extra = {"align": 4} if channels else {}
    smaller = technique(keep=0.5, importance="learned", steps=40, **extra).reshape(model, hierarchy, blocks, text(2, 0))
    assert smaller.parameters < hierarchy.parameters
    assert float((logits(model, text(2, 0)) - before).norm()) < 0.1 * float(before.norm())


def test_data_must_reach_the_tower():
    model, hierarchy, batches = opened("llava")
    blind = [replace(batch, inputs={"input_ids": batch.inputs["input_ids"].clamp(max=80)}) for batch in batches]
    units = channels_of(model, selected_blocks(hierarchy, "vision.blocks.*"))
    with pytest.raises(DataError, match=r"does not reach vision\.blocks\.0"):
        learned(model, units, blind, 0.5, 2, 0)


def test_steps_are_checked():
    with pytest.raises(ValueError, match="steps cannot be 0"):
        PruneHeads(importance="learned", steps=0)
