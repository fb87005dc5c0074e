"""Limits beside weight bytes: what a step takes on a device, least reachable values, plans that keep them."""

from types import SimpleNamespace

import pytest
from tests.models.tiny import build

from gossamer.core.budget import Budget
from gossamer.core.device import DEVICES, Device
from gossamer.core.errors import BudgetError
from gossamer.dataflow.inference import Inference
from gossamer.models.accounting import account
from gossamer.models.containers import Containers
from gossamer.models.structure import hierarchy_of
from gossamer.search.allocate import Option, allocate
from gossamer.search.limits import limits_of
from gossamer.search.units import fits, fixed_bytes, least_costs, total_costs, units_of

DEVICE = Device(
    name="board", description="", source="", memory_bytes=10**9, bandwidth_bytes_per_s=1e6,
    operations_per_s={"float32": 1e15}, disk_bytes_per_s=1e9, memory_joules_per_byte=1e-9,
    joules_per_operation={"float32": 1e-30},
)  # fmt: skip
"""Bound by memory: a byte takes a microsecond and a nanojoule."""


def made(name):
    model = build(name)
    opened = SimpleNamespace(model=model, hierarchy=hierarchy_of(model, model.config), config=model.config)
    units = units_of(opened.hierarchy, Containers.of(model), "layer")
    return opened, units, fixed_bytes(account(opened, {}).weight_bytes, units)


def limited(name, device=DEVICE, context=10, **budget):
    opened, units, fixed = made(name)
    return opened, *limits_of(opened, units, fixed, Budget(**budget), device, context), fixed


def taken(limits, units, chosen):
    return limits.estimates(total_costs(units, chosen))


def test_a_decoded_token_reads_the_decoder_the_head_and_the_cache():
    opened, units, limits, fixed = limited("llava", context=16)
    config = opened.config.get_text_config()
    read = sum(
        2 * layer.rows * layer.columns
        for part in opened.hierarchy.modalities
        if part.name in ("language", "head")
        for layer in (*part.layers, *(layer for block in part.blocks for layer in block.layers))
    )
    cache = 2 * 2 * 16 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    dense = taken(limits, units, [0] * len(units))
    assert dense["latency_ms"] == pytest.approx(1e3 * (read + cache) / 1e6)
    assert dense["energy_mj"] == pytest.approx(1e3 * (read + cache) * 1e-9)
    weights = fixed + total_costs(units, [0] * len(units))[0]
    assert limits.inference.cache_bytes == cache
    assert dense["peak_memory_bytes"] == weights + cache + limits.inference.activation_bytes
    longer = Inference.of(opened, 32)
    assert longer.cache_bytes == 2 * cache
    assert longer.activation_bytes > limits.inference.activation_bytes > 0


@pytest.mark.parametrize("name", ["llama", "qwen2", "whisper", "owlv2", "vit", "bert", "rwkv", "mixtral"])
def test_every_family_has_estimates_that_fall_with_the_bits(name):
    _, units, limits, _ = limited(name, device=DEVICES.load("jetson-orin-nano"))
    dense, least = taken(limits, units, [0] * len(units)), limits.estimates(least_costs(units))
    assert dense.keys() == {"peak_memory_bytes", "latency_ms", "energy_mj"}
    assert all(0 < least[key] <= dense[key] for key in dense)
    assert least["peak_memory_bytes"] < dense["peak_memory_bytes"]


@pytest.mark.parametrize("key", ["peak_memory_bytes", "latency_ms", "energy_mj"])
def test_an_impossible_limit_names_the_least_which_is_possible(key):
    option = {"peak_memory_bytes": "--peak-memory", "latency_ms": "--latency", "energy_mj": "--energy"}[key]
    tiny = 1 if key == "peak_memory_bytes" else 1e-6
    _, units, limits, _ = limited("llama", **{key: tiny})
    with pytest.raises(BudgetError, match=f"limit of .* cannot be met: .* nearest feasible is {option} ") as refused:
        limits.check(units)
    nearest = float(str(refused.value).rpartition(" ")[2])
    assert "\n" not in str(refused.value)
    _, units, limits, _ = limited("llama", **{key: nearest})
    limits.check(units)
    options = [[Option(choice.costs, 1.0 / choice.bytes) for choice in unit.choices] for unit in units]
    chosen = allocate(options, limits.room(units))
    assert taken(limits, units, chosen)[key] <= nearest
    _, _, less, _ = limited("llama", **{key: int(0.99 * nearest) if key == "peak_memory_bytes" else 0.99 * nearest})
    with pytest.raises(BudgetError):
        less.check(units)


def test_a_plan_keeps_all_limits_and_spends_the_bytes_where_no_token_reads_them():
    _, units, free, _ = limited("llava")
    dense = taken(free, units, [0] * len(units))
    options = [[Option(choice.costs, 16.0 - choice.bits) for choice in unit.choices] for unit in units]
    _, _, limits, _ = limited("llava", latency_ms=0.5 * dense["latency_ms"])
    chosen = allocate(options, limits.room(units))
    assert fits(units, chosen, limits.room(units))
    assert taken(limits, units, chosen)["latency_ms"] <= 0.5 * dense["latency_ms"]
    bits = {unit.name: unit.choices[c].bits for unit, c in zip(units, chosen, strict=True)}
    assert all(bits[unit.name] == 16 for unit in units if unit.modality == "vision")
    assert min(bits.values()) < 16


def test_energy_needs_a_device_that_tells():
    mute = DEVICE.model_copy(update={"memory_joules_per_byte": None})
    with pytest.raises(BudgetError, match="--energy cannot be estimated: device board needs power_watts"):
        limited("llama", device=mute, energy_mj=1.0)
    _, units, limits, _ = limited("llama", device=mute.model_copy(update={"power_watts": 3.0}))
    found = taken(limits, units, [0] * len(units))
    assert found["energy_mj"] == pytest.approx(3.0 * found["latency_ms"])


def test_compute_bound_layers_gain_nothing_from_fewer_bits():
    slow = DEVICE.model_copy(update={"operations_per_s": {"float32": 1.0}})
    _, units, limits, _ = limited("llama", device=slow)
    least, dense = limits.estimates(least_costs(units)), taken(limits, units, [0] * len(units))
    assert least["latency_ms"] == pytest.approx(dense["latency_ms"])
