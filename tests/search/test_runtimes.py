"""What each runtime serves: choices are made of nothing else, and fused sets stay together."""

from types import SimpleNamespace

import pytest
import torch
from tests.models.tiny import build

from gossamer.compress.presets import uniform_schemes
from gossamer.core.errors import ModelError
from gossamer.models.containers import Containers
from gossamer.models.gguf_blocks import encode
from gossamer.models.gguf_write import architecture_of
from gossamer.models.packed import QuantizedTensor, stored_bytes
from gossamer.models.structure import hierarchy_of
from gossamer.search.runtimes import RUNTIMES
from gossamer.search.units import choice_in, served, units_of


def made(name, runtime, granularity="layer"):
    model = build(name)
    hierarchy, containers = hierarchy_of(model, model.config), Containers.of(model)
    return hierarchy, containers, units_of(hierarchy, containers, granularity, runtime.grid, runtime.serves)


@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "llava", "siglip"])
def test_vllm_gets_packed_codes_of_linear_layers_outside_the_head(name, granularity):
    vllm = RUNTIMES["vllm"]
    hierarchy, containers, units = made(name, vllm, granularity)
    layers = {layer.path: layer for layer in hierarchy.layers()}
    for unit in units:
        for choice in unit.choices[1:]:
            assert choice.schemes
            for path, scheme in choice.schemes:
                assert containers.form(layers[path], scheme) == "pack-quantized"
                assert (scheme.bits, scheme.group) in {(4, 32), (4, 64), (4, 128), (8, 128), (8, None)}
                assert not path.startswith(("head.", "embeddings."))
            sets = {}
            for path, scheme in choice.schemes:
                sets.setdefault(layers[path].unit, []).append(scheme)
            for fused, schemes in sets.items():
                assert len(set(schemes)) == 1, fused
                assert len(schemes) == sum(layer.unit == fused for layer in layers.values())


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_every_uniform_setting_is_a_choice_of_every_unit(runtime, granularity):
    hierarchy, containers, units = made("llama", runtime, granularity)
    layers = {layer.path: layer for layer in hierarchy.layers()}
    for scheme in runtime.uniform:
        chosen = served(
            hierarchy,
            [layers[path] for path in uniform_schemes(hierarchy, scheme)],
            scheme,
            containers,
            runtime.serves,
        )
        assert all(choice_in(unit, chosen) >= 0 for unit in units)


@pytest.mark.parametrize("scheme", RUNTIMES["llama.cpp"].grid, ids=str)
def test_ggml_holds_the_codes_in_the_same_bytes(scheme):
    codes = torch.randint(scheme.low, scheme.high + 1, (4, 64)).to(torch.int8)
    tensor = QuantizedTensor(scheme, (4, 64), codes, torch.full((4, 2), 0.5, dtype=torch.float16))
    written = encode(tensor)
    assert written.exact
    assert torch.equal(written.decoded().reshape(4, 64), tensor.dequantize())
    assert written.data.nbytes <= stored_bytes("linear", (4, 64), scheme) <= written.data.nbytes + 16


def test_a_model_that_llama_cpp_does_not_know_is_refused():
    with pytest.raises(ModelError, match="is of type llava: GGUF export takes"):
        architecture_of(SimpleNamespace(model=build("llava"), source="it"))
