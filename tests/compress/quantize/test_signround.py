"""SignRound starts from Qronos and brings the block's output closer to the unchanged model's, or changes nothing."""

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import build

from gossamer.compress.apply import apply_steps
from gossamer.compress.quantize import Gptq, SignRound
from gossamer.compress.quantize.gptq import targets_of
from gossamer.compress.statistics import Statistics
from gossamer.core.errors import PlanError
from gossamer.core.plan import Step
from gossamer.core.technique import build as technique
from gossamer.data.batch import Batch
from gossamer.models.structure import hierarchy_of


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_targets_round_to_the_codes_they_were_found_by(symmetric, act_order):
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 48, generator=draw) @ torch.randn(48, 48, generator=draw)
    weight, statistics = torch.randn(10, 48, generator=draw), Statistics(inputs.T @ inputs / 500, 500)
    settings = Gptq(3, 16, symmetric, act_order)
    tensor = settings.quantize(weight, statistics).tensor
    aims = targets_of(weight, tensor.dequantize(), statistics.factor(settings.damping, act_order))
    latent = aims.reshape(10, 3, 16) / tensor.scales.float().unsqueeze(-1)
    if tensor.zeros is not None:
        latent = latent + tensor.zeros.unsqueeze(-1)
    codes = latent.round().clamp(tensor.scheme.low, tensor.scheme.high).reshape(10, 48)
    assert float((codes != tensor.codes).float().mean()) < 0.01  # values that lie half-way may fall either way


def quantised(name, do, bits, family="llama", **settings):
    torch.manual_seed(0)
    model = build(family, 0)
    if family == "llama":
        ids = torch.randint(3, 90, (40, 24))
        batches = [Batch({"input_ids": part}, part, tuple(range(8))) for part in ids.split(8)]
    else:
        inputs = inputs_for(family, model)
        batches = [Batch(inputs, torch.empty(0), tuple(range(next(iter(inputs.values())).shape[0])))]
    hierarchy = hierarchy_of(model, model.config)
    reference = [model(**batch.inputs) for batch in batches]
    reference = [out.logits if "logits" in out else out.logits_per_image for out in reference]
    step = Step.model_validate({"at": name, "do": do, "bits": bits, **settings})
    done = apply_steps(model, hierarchy, [step], batches)
    after = [model(**batch.inputs) for batch in batches]
    after = [out.logits if "logits" in out else out.logits_per_image for out in after]
    return done, float(sum((a - b).square().mean() for a, b in zip(after, reference, strict=True)))


@pytest.mark.parametrize("bits", [2, 3])
def test_the_model_comes_closer_than_by_qronos(bits):
    _, plain = quantised("language.blocks.*", "qronos", bits)
    done, polished = quantised("language.blocks.*", "signround", bits, iterations=200)
    assert polished < 0.95 * plain
    again, _ = quantised("language.blocks.*", "signround", bits, iterations=200)
    assert all(torch.equal(done.tensors[path].codes, again.tensors[path].codes) for path in done.tensors)


def test_rounding_never_moves_by_more_than_a_step_and_is_kept_only_if_better():
    before, _ = quantised("language.blocks.0", "qronos", 4)
    after, _ = quantised("language.blocks.0", "signround", 4, iterations=40)
    for path, tensor in after.tensors.items():
        assert int((tensor.codes.int() - before.tensors[path].codes.int()).abs().max()) <= 4  # the width moves too
        ratio = tensor.scales.float() / before.tensors[path].scales.float()
        assert 0.49 < float(ratio.min()) <= float(ratio.max()) < 1.51
    tiny, _ = quantised("language.blocks.0", "signround", 8, iterations=1)
    exact, _ = quantised("language.blocks.0", "qronos", 8)
    assert tiny.tensors.keys() == exact.tensors.keys()


@pytest.mark.parametrize("family", ["vit", "owlv2", "whisper", "mamba", "llava", "mixtral"])
def test_other_families(family):
    done, error = quantised("{vision,text,audio,language}.blocks.*", "signround", 8, family=family, iterations=3)
    assert done.tensors
    assert error < 0.1


def test_bad_settings_are_refused():
    with pytest.raises(PlanError, match="iterations"):
        technique("signround", {"bits": 4, "iterations": 0})
    assert SignRound(4).needs == "both models"
