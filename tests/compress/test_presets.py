import pytest

from gossamer.compress.presets import preset_steps
from gossamer.compress.prune import Permute
from gossamer.compress.quantize import Gptq, RoundToNearest
from gossamer.core.errors import PlanError
from gossamer.core.technique import build
from gossamer.models.hierarchy import Block, Hierarchy, Layer, Modality


def hierarchy(tied: bool) -> Hierarchy:
    qkv = "language.blocks.0.attn.{q,k,v}"
    layers = tuple(Layer(f"language.blocks.0.attn.{n}", f"b.{n}", "linear", (96, 576), qkv) for n in "qkv")
    down = Layer("language.blocks.0.mlp.down", "b.down", "linear", (576, 172), "language.blocks.0.mlp.down")
    conv = Layer("vision.patch", "patch", "conv", (8, 3, 4, 4), "vision.patch")
    table = Layer("embeddings.tokens", "tokens", "embedding", (99, 576), "embeddings.tokens")
    head = Layer("head.lm_head", "head", "linear", (99, 576), "head.lm_head", table.path if tied else None)
    return Hierarchy(
        "test",
        False,
        (
            Modality("vision", "v", (), (conv,), 0),
            Modality("language", "m", (Block("language.blocks.0", "b", (*layers, down), 0),), (), 0),
            Modality("embeddings", "", (), (table,), 0),
            Modality("head", "", (), (head,), 0),
        ),
    )


def test_a_preset_covers_linear_layers_and_fits_groups() -> None:
    steps = preset_steps("gptq-w3g64", hierarchy(tied=True))
    assert [(step.at, step.do, step.settings) for step in steps] == [
        ("language.blocks.0.attn.{q,k,v}", "gptq", {"bits": 3, "group": 64}),
        ("language.blocks.0.mlp.down", "gptq", {"bits": 3, "group": None}),
    ]
    assert build(steps[0].do, steps[0].settings) == Gptq(3, 64)


def test_an_untied_head_is_quantised_and_a_marks_asymmetric() -> None:
    steps = preset_steps("rtn-w4g128a", hierarchy(tied=False))
    assert [step.at for step in steps][-1] == "head.lm_head"
    assert build(steps[0].do, steps[0].settings) == RoundToNearest(4, 96, symmetric=False)
    assert build(steps[1].do, steps[1].settings).group is None
    assert {step.settings["group"] for step in preset_steps("rtn-w8", hierarchy(tied=False))} == {None}


def mixture() -> Hierarchy:
    """Two experts whose matrices have 96 and 40 columns."""
    stem, unit = "language.blocks.0.mlp.experts", "language.blocks.0.mlp.experts.{n}.{{gate_up_proj,down_proj}}"
    experts = tuple(
        Layer(f"{stem}.{n}.{name}", "b.experts", "expert", shape, unit.format(n=n), None, name, False, n)
        for n in range(2)
        for name, shape in (("gate_up_proj", (80, 96)), ("down_proj", (96, 40)))
    )
    query = Layer("language.blocks.0.q", "b.q", "linear", (96, 96), "language.blocks.0.q")
    block = Block("language.blocks.0", "b", (query, *experts), 0)
    return Hierarchy("test", False, (Modality("language", "m", (block,), (), 0),))


def test_the_experts_of_a_block_share_one_step_and_a_group_that_fits_all() -> None:
    steps = preset_steps("wanda-50+gptq-w4g64+correction-r8", mixture())
    assert [(step.do, step.at, step.settings.get("group")) for step in steps] == [
        ("wanda", "language.blocks.0.q", None),
        ("wanda", "language.blocks.0.mlp.experts", None),
        ("gptq", "language.blocks.0.q", 48),
        ("gptq", "language.blocks.0.mlp.experts", 8),
        ("correction", "language.blocks.0.q", None),
    ]
    [pruned] = preset_steps("prune_experts-75", mixture())
    assert (pruned.do, pruned.at, pruned.settings) == ("prune_experts", "language.blocks.*", {"keep": 0.75})


def test_passes_are_joined_in_the_order_of_the_phases() -> None:
    steps = preset_steps("sparsegpt-2:4+gptq-w4g64+correction-r8", hierarchy(tied=False))
    assert [(step.do, step.at) for step in steps] == [
        ("sparsegpt", "language.blocks.0.attn.{q,k,v}"),
        ("sparsegpt", "language.blocks.0.mlp.down"),
        ("gptq", "language.blocks.0.attn.{q,k,v}"),
        ("gptq", "language.blocks.0.mlp.down"),
        ("gptq", "head.lm_head"),
        ("correction", "language.blocks.0.attn.{q,k,v}"),
        ("correction", "language.blocks.0.mlp.down"),
    ]
    assert steps[0].settings == {"pattern": "2:4"}
    assert steps[-1].settings == {"rank": 8}
    assert preset_steps("wanda-30", hierarchy(tied=False))[0].settings == {"sparsity": 0.3}
    with pytest.raises(PlanError, match="too late"):
        preset_steps("gptq-w4+wanda-50", hierarchy(tied=False))


def test_a_permutation_goes_by_the_pruner_behind_it() -> None:
    for name, wanted in (("ria-2:4", "ria"), ("obr-4:8+gptq-w4", "wanda"), ("magnitude-1:4", "magnitude")):
        step = preset_steps(f"permute+{name}", hierarchy(tied=False))[0]
        assert step.at == "language.**"
        assert build(step.do, step.settings) == Permute(name.partition("-")[2].partition("+")[0], wanted)
    for name in ("permute", "permute+ria-50", "permute+gptq-w4"):
        with pytest.raises(PlanError, match=r"a pruner with a pattern behind it, as in permute\+ria-2:4"):
            preset_steps(name, hierarchy(tied=False))


@pytest.mark.parametrize(
    "name",
    [
        "rtn-w4",
        "gptq-w2",
        "gptq-w8g32",
        "rtn-w5a",
        "gptq-w4g128a",
        "rotate+gptq-w4",
        "spinquant+gptq-w4g64",
        "learned_scales+omniquant-w3g64",
    ],
)
def test_known_names(name: str) -> None:
    assert preset_steps(name, hierarchy(tied=True))


@pytest.mark.parametrize("name", ["", "gtpq-w4", "RTN-w4", "gptq-w4+", "drop_block"])
def test_unknown_names_say_what_is_accepted(name: str) -> None:
    with pytest.raises(PlanError, match=r"no technique of a preset; write one of .*gptq\|.*such as rtn-w4"):
        preset_steps(name, hierarchy(tied=True))


@pytest.mark.parametrize("name", ["gptq", "gptq-w9", "gptq-w1", "gptq-w4g48", "gptq-w4g64ab", "wanda-w4", "rotate-2"])
def test_wrong_settings_say_what_is_accepted(name: str) -> None:
    with pytest.raises(PlanError, match=r"after (gptq|wanda|rotate) comes"):
        preset_steps(name, hierarchy(tied=True))


def test_channels_stay_in_equal_or_in_free_numbers() -> None:
    for name, settings in (("75", {"keep": 0.75}), ("free-80", {"keep": 0.8, "widths": "free"})):
        (step,) = preset_steps(f"prune_channels-{name}", hierarchy(tied=True))
        assert (step.at, step.settings) == ("language.blocks.*", settings)
        assert build(step.do, step.settings).widths == settings.get("widths", "uniform")
    with pytest.raises(PlanError, match="free-75 for widths that differ by block"):
        preset_steps("prune_channels-free", hierarchy(tied=True))


def test_importance_and_loss_can_be_named() -> None:
    model = hierarchy(tied=False)
    assert preset_steps("prune_channels-80", model)[0].settings == {"keep": 0.8}
    assert preset_steps("prune_heads-80-learned", model)[0].settings == {"keep": 0.8, "importance": "learned"}
    assert preset_steps("gptq-w2+heal", model)[-1].settings == {}
    assert preset_steps("gptq-w2+heal-on_policy", model)[-1].settings == {"loss": "on_policy"}
    with pytest.raises(PlanError, match="after heal comes nothing or a loss"):
        preset_steps("gptq-w2+heal-50", model)
