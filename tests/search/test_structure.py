"""Whether structure pays: the trials do what they say, and the verdict is that of the best plan at equal bytes."""

import itertools

import pytest
import torch

from gossamer.compress.apply import apply_steps
from gossamer.core.plan import Step
from gossamer.models.hierarchy import Layer
from gossamer.models.open import open_model
from gossamer.models.structure import read_matrix
from gossamer.search.opening import open_job
from gossamer.search.request import OptimizeRequest
from gossamer.search.structure import Change, changes, does_structure_pay
from gossamer.search.units import Choice, Unit


def unit(name, block):
    layer = Layer(name, name, "linear", (8, 8), name)
    return Unit(name, "language", block, (layer,), tuple(Choice(str(b), b, (), 8 * b) for b in (16, 8, 4, 2)))


UNITS = [unit("a", 0), unit("b", 0), unit("c", 1)]
LOSSES = [[0, 0.1, 0.4, 1.0], [0, 0.01, 0.05, 0.3], [0, 0.2, 0.9, 3.0]]


def best(budget, shares, extra):
    """By trying everything."""
    every = itertools.product(range(4), repeat=3)
    return extra + min(
        sum(row[c] for row, c in zip(LOSSES, choice, strict=True))
        for choice in every
        if sum(int(u.choices[c].bytes * shares.get(u.name, 1)) for u, c in zip(UNITS, choice, strict=True)) <= budget
    )


@pytest.mark.parametrize("budget", [60, 100, 150, 200, 300])
def test_the_verdict_compares_the_best_plans_of_equal_bytes(budget):
    cheap = Change("drop", "language.blocks.0", 0.3, {"a": 0.0, "b": 0.0}, 10)
    dear = Change("drop", "language.blocks.1", 2.5, {"c": 0.0})
    cut = Change("cut", "language.blocks.1", 0.05, {"c": 0.75})
    dropped, narrowed = does_structure_pay(UNITS, LOSSES, [dear, cheap, cut], (budget,))
    alone = best(budget, {}, 0)
    for said, change, technique in ((dropped, cheap, "drop_block"), (narrowed, cut, "prune_channels")):
        wanted = best(budget + change.freed, change.shares, change.kl)
        assert f"lose {wanted:.3g} nats per position where bits alone lose {alone:.3g}: " in said
        assert said.startswith(f"At the same bytes, {change.name} ")
        assert (f"it may pay here: see {technique}." if wanted < alone else "it does not pay here.") in said


def test_nothing_is_said_where_nothing_is_lost_or_known():
    drop = Change("drop", "language.blocks.0", 0.3, {"a": 0.0})
    assert does_structure_pay(UNITS, LOSSES, [drop], (384,)) == []
    assert does_structure_pay(UNITS, LOSSES, [], (100,)) == []
    assert does_structure_pay(UNITS, LOSSES, [drop], (10,)) == []


def test_every_block_is_tried_both_ways(model, tmp_path):
    job = open_job(OptimizeRequest(model=str(model), ratio=1.0, effort="quick", out=tmp_path / "run"))
    before = {name: value.clone() for name, value in job.opened.model.state_dict().items()}
    found = changes(job)
    blocks = list(job.opened.hierarchy.blocks())
    assert [(one.kind, one.block) for one in found] == [(k, b.path) for b in blocks for k in ("drop", "cut")]
    assert all(one.kl > 0 for one in found)
    assert all(torch.equal(value, before[name]) for name, value in job.opened.model.state_dict().items())
    scorer = job.scorer("measure")
    for block, drop, cut in zip(blocks, found[::2], found[1::2], strict=True):
        smaller = open_model(str(model))
        apply_steps(smaller.model, smaller.hierarchy, [Step(at=block.path, do="drop_block")], [])
        wanted = scorer.score(lambda _, batch, smaller=smaller: smaller.model(**batch.inputs)).mean_kl
        assert drop.kl == pytest.approx(wanted, rel=1e-3)
        whole = 2 * block.parameters
        units = {unit.name: unit.choices[0].bytes for unit in job.units}
        assert drop.freed + sum(units[name] for name in drop.shares) == whole
        assert drop.freed == 2 * block.other_parameters
        mlp = {name: share for name, share in cut.shares.items() if "mlp" in name}
        assert set(mlp.values()) == {0.75}
        assert {share for name, share in cut.shares.items() if name not in mlp} == {1.0}
    assert changes(job) == found
    assert any(read_matrix(job.opened.model, layer).any() for layer in blocks[0].layers)
