import pytest

from gossamer.compress.quantize import Gptq, RoundToNearest
from gossamer.compress.quantize.presets import preset_steps
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


@pytest.mark.parametrize("name", ["rtn-w4", "gptq-w2", "gptq-w8g32", "rtn-w5a", "gptq-w4g128a"])
def test_known_names(name: str) -> None:
    assert preset_steps(name, hierarchy(tied=True))


@pytest.mark.parametrize("name", ["", "gptq", "gptq-w9", "gptq-w1", "hqq-w4", "gptq-w4g48", "gptq-w4g64ab", "RTN-w4"])
def test_unknown_names_say_what_is_accepted(name: str) -> None:
    with pytest.raises(PlanError, match=r"rtn\|awq\|gptq\|qronos\|signround"):
        preset_steps(name, hierarchy(tied=True))
