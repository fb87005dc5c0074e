"""What holds for every pruner: counts, ties, settings, and what happens where calibration knows little."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compress.prune.cases import CALIBRATED, COMPENSATING, EVERY, layer

from gossamer.compress.passes import relative_loss
from gossamer.compress.prune import Magnitude, Obr, Ria, SparseGpt, Wanda
from gossamer.compress.prune.to_sparsity import ToSparsity, lowest
from gossamer.compress.quantize import Gptq
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import ModelError, PlanError
from gossamer.core.technique import build

every = pytest.mark.parametrize("make", EVERY)
patterns = st.tuples(st.integers(1, 7), st.integers(2, 8)).filter(lambda pair: pair[0] < pair[1])


@every
@settings(max_examples=20)
@given(patterns, st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_patterns_hold_in_every_group(make, pattern, rows, groups, seed):
    kept, width = pattern
    weight, statistics = layer(seed, rows, groups * width, 50)
    found = make(None, f"{kept}:{width}").sparsify(weight, statistics)
    assert bool((found.mask.reshape(rows, groups, width).sum(2) == kept).all())
    assert not found.weight[~found.mask].any()


@every
@settings(max_examples=20)
@given(st.floats(0.02, 0.98), st.integers(1, 6), st.integers(1, 150), st.integers(0, 99))
def test_the_share_is_exact(make, sparsity, rows, columns, seed):
    weight, statistics = layer(seed, rows, columns, 50)
    found = make(sparsity).sparsify(weight, statistics)
    if isinstance(make(), (Magnitude, SparseGpt)) or getattr(make(), "mask", None) == "sparsegpt":
        assert int((~found.mask).sum()) == round(sparsity * rows * columns)
    else:
        assert bool(((~found.mask).sum(1) == round(sparsity * columns)).all())
    assert not found.weight[~found.mask].any()
    assert bool(torch.isfinite(found.weight).all())


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_of_equal_scores_the_leftmost_go(values, data):
    count = data.draw(st.integers(0, len(values)))
    found = lowest(torch.tensor([values], dtype=torch.float32), count)[0]
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    assert found.nonzero().flatten().tolist() == sorted(order[:count])


@every
def test_the_loss_is_that_of_the_result_and_nothing_given_is_touched(make):
    weight, statistics = layer(1)
    before, hessian = weight.clone(), statistics.hessian.clone()
    one, two = (make(0.5).sparsify(weight, statistics) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.mask, two.mask)
    assert one.loss == pytest.approx(relative_loss(one.weight - weight, weight, statistics), rel=1e-4)
    assert one.notes == ()
    assert torch.equal(weight, before)
    assert torch.equal(statistics.hessian, hessian)


@every
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_gptq_keeps_every_zero(make, symmetric, pattern):
    weight, statistics = layer(2)
    sparse = make(None, pattern).sparsify(weight, statistics)
    rounded = Gptq(4, symmetric=symmetric).quantize(sparse.weight, statistics, sparse.mask)
    assert not rounded.tensor.dequantize()[~sparse.mask].any()
    assert rounded.tensor.dequantize()[sparse.mask].any()


@pytest.mark.parametrize("pattern", [None, "2:4", "4:8"])
def test_what_knows_more_loses_less(pattern):
    for seed in range(5):
        case = layer(seed)
        magnitude, wanda, ria, sparsegpt, obr, both = (make(None, pattern).sparsify(*case).loss for make in EVERY)
        assert wanda < magnitude
        assert ria < magnitude
        assert sparsegpt < wanda
        assert obr < wanda
        assert both < sparsegpt


@pytest.mark.parametrize("make", CALIBRATED)
def test_without_statistics_weights_decide_and_the_notes_say_so(make):
    weight, _ = layer(3)
    for statistics in (None, Statistics(torch.zeros(96, 96), 1)):
        found = make(0.5).sparsify(weight, statistics)
        assert found.notes[0].startswith("scored by weights alone")
        assert torch.equal(found.weight, weight * found.mask)
        if not isinstance(make(), Ria):
            assert torch.equal(found.mask, ~lowest(weight.abs(), 48))


@pytest.mark.parametrize("make", COMPENSATING)
@pytest.mark.parametrize("pattern", [None, "1:4"])
def test_singular_hessians_are_pruned_by_wanda_and_noted(make, pattern):
    weight, _ = layer(4)
    singular = Statistics(torch.diag(torch.arange(1.0, 97.0)) - torch.ones(96, 96) * 100, 1)
    with_power = Statistics(singular.hessian.fill_diagonal_(50), 1)
    found, wanda = make(None, pattern).sparsify(weight, with_power), Wanda(None, pattern).sparsify(weight, with_power)
    assert torch.equal(found.weight, wanda.weight)
    assert found.notes == ("nothing makes up for the weights that went: the Hessian is singular at every damping",)
    shaky = torch.ones(96, 96).fill_diagonal_(0.95)
    assert "damping was raised" in make(None, pattern).sparsify(weight, Statistics(shaky, 1)).notes[0]


@pytest.mark.parametrize("make", CALIBRATED)
def test_weights_on_dead_inputs_go_first(make):
    weight, statistics = layer(5)
    weight[:, 7] = 1000
    hessian = statistics.hessian.clone()
    hessian[[7, 30]] = 0
    hessian[:, [7, 30]] = 0
    found = make(0.4).sparsify(weight, Statistics(hessian, 400))
    assert not found.mask[:, [7, 30]].any()
    assert found.notes == ("2 input columns were never active in calibration: their weights go first",)
    assert make(0.4).sparsify(weight[:, 7:8].contiguous(), Statistics(torch.zeros(1, 1), 1)).weight.shape == (12, 1)


@every
def test_fewer_tokens_than_columns_are_enough(make):
    weight, statistics = layer(6, tokens=10)
    assert bool(torch.isfinite(make(0.5).sparsify(weight, statistics).weight).all())


@every
def test_a_row_may_lose_everything(make):
    weight, statistics = layer(7, 1, 4)
    found = make(0.9).sparsify(weight, statistics)
    assert not found.mask.any()
    assert found.loss == pytest.approx(1)


@every
def test_bad_input_is_refused(make):
    weight, statistics = layer(8)
    with pytest.raises(PlanError, match=r"pattern 5:7 does not fit 96 columns: m can be 2, 3, 4, 6"):
        make(None, "5:7").sparsify(weight, statistics)
    with pytest.raises(PlanError, match="use sparsity instead"):
        make(None, "2:4").sparsify(weight[:, :1], Statistics(torch.ones(1, 1), 1))
    with pytest.raises(ModelError, match="magnitude"):
        make(0.5).sparsify(weight * torch.nan, statistics)
    with pytest.raises(ModelError, match="matrix"):
        make(0.5).sparsify(weight[0], statistics)


@pytest.mark.parametrize("make", CALIBRATED)
def test_a_hessian_that_is_not_finite_is_refused(make):
    with pytest.raises(ModelError, match="NaN"):
        make(0.5).sparsify(layer(9)[0], Statistics(torch.full((96, 96), torch.nan), 1))


@pytest.mark.parametrize("name", ["magnitude", "wanda", "ria", "sparsegpt", "obr"])
def test_settings_are_checked(name):
    assert build(name, {}) == build(name, {"sparsity": None, "pattern": None})
    assert build(name, {"sparsity": 0.5, "pattern": "2:4"}).groups == (2, 4)
    for sparsity in (0, 1.0, -0.5, float("nan")):
        with pytest.raises(PlanError, match="sparsity cannot be"):
            build(name, {"sparsity": sparsity})
    for pattern in ("4:2", "2:2", "0:4", "2-4", "", "2:4 ", "²:4"):
        with pytest.raises(PlanError, match="pattern cannot be"):
            build(name, {"pattern": pattern})
    with pytest.raises(PlanError, match=r"contradicts pattern 1:4, which is 0.75"):
        build(name, {"pattern": "1:4", "sparsity": 0.5})


@pytest.mark.parametrize(("name", "key", "value"), [("ria", "exponent", -1.0), ("obr", "mask", "random")])
def test_own_settings_are_checked(name, key, value):
    with pytest.raises(PlanError, match=key):
        build(name, {key: value})


@pytest.mark.parametrize("name", ["sparsegpt", "obr"])
def test_damping_is_checked(name):
    with pytest.raises(PlanError, match="damping"):
        build(name, {"damping": 0.0})


def test_no_setting_means_half():
    assert ToSparsity().removed(10) == 5
    assert Obr(pattern="2:4").groups == (2, 4)
