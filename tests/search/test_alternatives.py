"""Alternatives take no more packed bytes than what they are set against, and the verdict follows the trials."""

import pytest

from gossamer.compress.prune import SparseGpt
from gossamer.models.hierarchy import Layer
from gossamer.models.packed import Scheme, packed_bytes
from gossamer.search.alternatives import Trial, chain_of, does_it_pay


@pytest.mark.parametrize("shape", [(96, 192), (576, 1536), (64, 64), (2048, 256), (100, 128)])
def test_bytes_are_no_more_than_the_yardstick(shape):
    layer = Layer("a.b", "b", "linear", shape, "a.b")
    rows, columns = shape
    yardstick = packed_bytes(shape, chain_of("base", layer).quantise.scheme)
    assert chain_of("base", layer).quantise.scheme == Scheme(3, 64)
    sparse = chain_of("sparse", layer)
    assert sparse.sparsify == SparseGpt(0.5)
    scales = packed_bytes(shape, sparse.quantise.scheme) - rows * columns // 2
    assert rows * columns // 8 + rows * columns // 4 + scales <= yardstick
    low_rank = chain_of("low rank", layer)
    factors = 2 * low_rank.correct.rank * (rows + columns)
    assert packed_bytes(shape, low_rank.quantise.scheme) + factors <= yardstick
    assert factors + 2 * (rows + columns) > rows * columns // 8, "a rank more would be too many"


def test_the_verdict_counts_units():
    trials = [Trial(f"u{n}", 1.0, {"sparse": 2.0 + n, "low rank": 0.5 if n else 3.0}) for n in range(3)]
    sparse, low_rank = does_it_pay(trials)
    assert "loses 3 times as much (median of 3 units) and is better on 0 of them: it does not pay here" in sparse
    assert "loses 0.5 times as much" in low_rank
    assert "better on 2 of them: it may pay here" in low_rank
    assert does_it_pay([]) == []
