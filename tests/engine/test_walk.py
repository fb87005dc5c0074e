"""The block walk: running from any block on gives exactly what running the whole model gives."""

import pytest
import torch
from tests.models.feeds import inputs_for
from tests.models.tiny import BUILDERS, build

from gossamer.engine.walk import Walk
from gossamer.models.structure import hierarchy_of


def logits(output):
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        value = output.get(name)
        if value is not None:
            return value
    raise AssertionError(f"no logits in {list(output)}")


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_any_suffix_equals_the_whole_model(name):
    torch.manual_seed(0)
    model = build(name)
    inputs = inputs_for(name, model)
    hierarchy = hierarchy_of(model, model.config)
    walk = Walk(model, hierarchy, inputs)
    assert len(walk.stages) == len(list(hierarchy.blocks()))
    with torch.inference_mode():
        whole = logits(model(**inputs))
    entry = walk.start(inputs)
    for stage in range(len(walk.stages)):
        assert entry.stage == stage
        assert torch.equal(logits(walk.finish(entry, inputs)), whole)
        if stage < len(walk.stages) - 1:
            entry = walk.advance(entry, inputs)
    assert all("forward" not in module.__dict__ for module in model.modules()), "a replaced forward was left behind"
    with torch.inference_mode():
        assert torch.equal(logits(model(**inputs)), whole)


def test_changed_block_is_seen_and_earlier_blocks_are_not():
    torch.manual_seed(0)
    model = build("llama")
    inputs = inputs_for("llama", model)
    walk = Walk(model, hierarchy_of(model, model.config), inputs)
    entry = walk.advance(walk.start(inputs), inputs)
    before = walk.finish(entry, inputs).logits
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    assert torch.equal(walk.finish(entry, inputs).logits, before), "block 0 lies before the entry"
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    assert not torch.equal(walk.finish(entry, inputs).logits, before)
