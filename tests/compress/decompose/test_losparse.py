import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import inputs, layer, output_loss
from torch import Tensor

from gossamer.compress.decompose import LoSparse, TruncatedSvd
from gossamer.compress.passes import relative_loss
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import PlanError
from gossamer.core.technique import build

ROWS, COLUMNS = 64, 96


def both_structures(seed: int) -> tuple[Tensor, Statistics]:
    """A matrix of rank 4, with large single values all over and a little noise."""
    noise, statistics = layer(seed, ROWS, COLUMNS)
    smooth = layer(seed + 50, ROWS, 4)[0] @ layer(seed + 60, 4, COLUMNS)[0]
    draw = torch.Generator().manual_seed(seed + 70)
    spikes = 8 * layer(seed + 80, ROWS, COLUMNS)[0] * (torch.rand(ROWS, COLUMNS, generator=draw) < 0.05)
    return smooth + spikes + 0.05 * noise, statistics


def pruned(weight: Tensor, statistics: Statistics, keep: int) -> Tensor:
    """Wanda alone: the `keep` values of each row that weigh most."""
    scores = weight.abs() * statistics.hessian.diagonal().sqrt()
    return weight * (scores >= scores.topk(keep, dim=1).values[:, -1:])


@settings(max_examples=15)
@given(st.integers(0, 149))
def test_both_parts_together_beat_either_alone_at_the_same_bytes(seed: int) -> None:
    """Values at 16 bits each; a sparse matrix has a bit more for every place."""
    weight, statistics = both_structures(seed)
    both = LoSparse(rank=4, sparsity=0.875).decompose(weight, statistics)
    assert both.rest is not None
    budget = both.low_rank.bytes + 2 * int(both.rest.count_nonzero()) + ROWS * COLUMNS // 8
    keep = -(-(budget - ROWS * COLUMNS // 8) // (2 * ROWS))
    rank = -(-budget // (2 * (ROWS + COLUMNS)))
    sparse_alone = relative_loss(weight - pruned(weight, statistics, keep), weight, statistics)
    low_rank_alone = TruncatedSvd(rank=rank).decompose(weight, statistics).loss
    assert both.loss <= 0.75 * min(sparse_alone, low_rank_alone)


@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([0.3, 0.5, 0.9]), st.booleans())
def test_the_parts_are_what_they_say(seed: int, sparsity: float, data: bool) -> None:
    weight, statistics = both_structures(seed)
    found = LoSparse(ratio=0.2, sparsity=sparsity).decompose(weight, statistics if data else None)
    assert found.mask is not None
    assert found.rest is not None
    assert not found.rest[~found.mask].any()
    assert set((~found.mask).sum(1).tolist()) == {int(sparsity * COLUMNS)}
    error = weight - found.low_rank.dense() - found.rest
    assert not error[found.mask].abs().max() > 1e-6 * float(weight.abs().max())
    seen = inputs(seed, COLUMNS) if data else torch.eye(COLUMNS)
    assert found.loss == pytest.approx(output_loss(error, weight, seen), rel=1e-3)
    assert bool(found.notes) != data


def test_the_best_round_counts() -> None:
    for seed in range(4):
        weight, statistics = both_structures(seed)
        losses = [LoSparse(rank=4, rounds=rounds).decompose(weight, statistics).loss for rounds in range(3, 11)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "fields",
    [{"sparsity": 0.5}, {"rank": 1, "sparsity": 1.0}, {"rank": 1, "sparsity": 0.0}, {"rank": 1, "rounds": 2}],
)
def test_settings_outside_their_ranges_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="technique 'losparse'"):
        build("losparse", fields)
