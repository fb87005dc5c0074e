"""What a plan takes of every limited resource: weights, peak memory, and latency and energy on a device.

Each is linear in the choices: a constant, and what the chosen option of every unit adds. Weights and peak memory count
the same bytes beside other constants; latency and energy are estimates of one inference step (`dataflow/inference.py`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from gossamer.core.budget import Budget
from gossamer.core.device import Device
from gossamer.core.errors import BudgetError
from gossamer.core.units import format_bytes
from gossamer.dataflow.inference import Inference
from gossamer.models.containers import Containers
from gossamer.models.hierarchy import Layer
from gossamer.models.open import Opened
from gossamer.models.packed import Scheme
from gossamer.search.units import Costs, Unit, least_costs, total_costs

_WORDS = {"weight_bytes": "weight", "peak_memory_bytes": "peak memory", "latency_ms": "latency", "energy_mj": "energy"}


@dataclass(frozen=True)
class Resource:
    """A plan takes `constant` and its choices' costs at `place`; `most` is the limit, None where none is set.

    `key` names it in budgets and results, `option` on the command line.
    """

    key: str
    option: str
    place: int
    constant: float
    most: float | None

    def taken(self, costs: Costs) -> float:
        """What a plan takes whose choices cost so much."""
        return self.constant + costs[self.place]


@dataclass(frozen=True)
class Limits:
    """The resources of one model. `device` and `inference` are what estimates are of, None where none are asked for."""

    resources: tuple[Resource, ...]
    device: Device | None = None
    inference: Inference | None = None

    @property
    def hardware(self) -> dict[str, object]:
        """What estimates are of, as a plan names it."""
        if self.inference is None:
            return {}
        named = {} if self.device is None else {"device": self.device.name}
        return {**named, "context": self.inference.context}

    @property
    def stated(self) -> bool:
        """Whether any limit is set."""
        return any(resource.most is not None for resource in self.resources)

    def room(self, units: Sequence[Unit]) -> Costs:
        """What the choices of all units may take; of what has no limit, as much as at 16 bits."""
        found = list(total_costs(units, [0] * len(units)))
        for resource in self.resources:
            if resource.most is not None:
                found[resource.place] = min(found[resource.place], resource.most - resource.constant)
        return tuple(found)

    def estimates(self, costs: Costs) -> dict[str, float]:
        """What a plan takes whose choices cost so much, by key: all but weight bytes, which are measured."""
        return {resource.key: resource.taken(costs) for resource in self.resources if resource.key != "weight_bytes"}

    def sentences(self) -> list[str]:
        """What the estimates are of."""
        if self.inference is None:
            return []
        named = ", ".join(_WORDS[resource.key] for resource in self.resources if resource.key != "weight_bytes")
        return [f"Estimated, not measured: {named} of {self.inference.assumptions(self.device)}."]

    def check(self, units: Sequence[Unit]) -> None:
        """Raises `BudgetError` for a limit that not even the smallest choices keep; it names the least possible."""
        least = least_costs(units)
        for resource in self.resources:
            nearest = resource.taken(least)
            if resource.most is None or nearest <= resource.most:
                continue
            show = format_bytes if resource.key.endswith("_bytes") else _plain
            stated = math.ceil(nearest) if show is format_bytes else _rounded_up(nearest)
            raise BudgetError(
                f"the {_WORDS[resource.key]} limit of {show(resource.most)} cannot be met: {show(resource.constant)} "
                f"are there whatever is chosen and the smallest choices bring it to {show(nearest)}; the nearest "
                f"feasible is {resource.option} {stated}"
            )


def limits_of(
    opened: Opened, units: Sequence[Unit], fixed: int, budget: Budget, device: Device | None, context: int | None
) -> tuple[tuple[Unit, ...], Limits]:
    """The units with the costs of their choices, and the resources under `budget`.

    `fixed` are the bytes that no unit holds. Raises `BudgetError` for a limit on a device that does not tell enough.
    """
    weights = Resource("weight_bytes", "--memory", 0, fixed, budget.weight_bytes)
    if device is None and budget.peak_memory_bytes is None:
        return tuple(units), Limits((weights,))
    inference = Inference.of(opened, context)
    peak = inference.peak_bytes(fixed)
    resources = [weights, Resource("peak_memory_bytes", "--peak-memory", 0, peak, budget.peak_memory_bytes)]
    if device is None:
        return tuple(units), Limits(tuple(resources), None, inference)
    containers = Containers.of(opened.model)
    held = {layer.path for unit in units for layer in unit.layers}

    def costs(layers: Iterable[Layer], schemes: Mapping[str, Scheme]) -> Costs:
        """Of layers under schemes, the others at 16 bits."""
        each = [inference.costs(device, one, containers.bytes(one, schemes.get(one.path))) for one in layers]
        return tuple(map(sum, zip(*each, strict=True)))

    outside = [layer for layer in opened.hierarchy.layers() if layer.path not in held]
    cache = inference.cache_costs(device)
    constants = [a + b for a, b in zip_longest(cache, costs(outside, {}), fillvalue=0.0)]
    if budget.energy_mj is not None and len(cache) < 2:
        raise BudgetError(
            f"--energy cannot be estimated: device {device.name} needs power_watts, or memory_joules_per_byte with "
            "joules_per_operation"
        )
    kinds = (("latency_ms", "--latency", budget.latency_ms), ("energy_mj", "--energy", budget.energy_mj))
    resources += [
        Resource(key, option, place, constant, most)
        for place, ((key, option, most), constant) in enumerate(zip(kinds, constants, strict=False), 1)
    ]
    priced = tuple(
        replace(
            unit,
            choices=tuple(replace(choice, others=costs(unit.layers, dict(choice.schemes))) for choice in unit.choices),
        )
        for unit in units
    )
    return priced, Limits(tuple(resources), device, inference)


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _rounded_up(value: float) -> str:
    """Four digits that are not less than `value`."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return _plain(math.ceil(value / step) * step)
