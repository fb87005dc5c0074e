"""Exact bytes of a compressed checkpoint, from the model's shapes alone: no weights are needed.

What is counted is what the exported file holds: codes padded to whole words, scales, zero points, stored shapes, and
everything else at 16 bits, in the containers that the public loaders read back (see `containers.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gossamer.core.errors import PlanError
from gossamer.models.hierarchy import Hierarchy, Layer

if TYPE_CHECKING:
    from gossamer.models.open import Opened
    from gossamer.models.packed import Scheme

FULL_BITS = 16
"""The width of what is not quantised, and of the model that every ratio is against."""


@dataclass(frozen=True)
class Rule:
    """The layers that the glob `at` selects get `bits` (16: not quantised)."""

    at: str
    bits: int


@dataclass(frozen=True)
class Account:
    """What a checkpoint takes. `dense_bytes` is the same model at 16 bits; `scale_bytes` are the scales, zero points
    and shapes within `weight_bytes`, or left out of it where the account was made without them."""

    weight_bytes: int
    dense_bytes: int
    scale_bytes: int

    @property
    def saving_percent(self) -> float:
        """How much smaller than at 16 bits."""
        return 100.0 * (1.0 - self.weight_bytes / self.dense_bytes)


def parse_rule(text: str) -> Rule:
    """The rule in `PATHS=BITS`, as in `language.blocks.{0,31}.*=16`. Raises `PlanError` if it is written otherwise."""
    at, _, bits = text.rpartition("=")
    if not at.strip() or not bits.strip().isdigit() or int(bits) not in (*range(2, 9), FULL_BITS):
        raise PlanError(
            f"{text!r} is not a rule: write PATHS=BITS with 2 to 8 or 16 bits, as in 'language.blocks.0.*=16'"
        )
    return Rule(at.strip(), int(bits))


def schemes_for(
    hierarchy: Hierarchy, bits: int, group: int | None = None, keep: Iterable[Rule] = (), symmetric: bool = True
) -> "dict[str, Scheme]":
    """Layer path → grid: every block's matrices at `bits`, but where a rule of `keep` (the last that fits) says other.

    Where `group` does not divide a layer's columns, the largest fitting group below it is taken. Raises `PlanError` for
    bits outside 2 to 8 and 16, and for a rule that selects nothing.
    """
    from gossamer.models.packed import Scheme

    if bits not in (*range(2, 9), FULL_BITS):
        raise PlanError(f"bits cannot be {bits}: weights take 2 to 8 bits, or 16 to stay as they are")
    if group is not None and group < 1:
        raise PlanError(f"group cannot be {group}: give a number of columns such as 64 or 128")
    chosen = {layer.path: bits for block in hierarchy.blocks() for layer in block.layers}
    for rule in keep:
        selected = hierarchy.select(rule.at)
        if not selected:
            raise PlanError(f"{rule.at!r} selects no layer of this model: gossamer inspect lists its paths")
        chosen.update((layer.path, rule.bits) for layer in selected)
    return {
        layer.path: Scheme(width, group, symmetric).fitted(hierarchy.grid_columns(layer))
        for layer in hierarchy.layers()
        if (width := chosen.get(layer.path, FULL_BITS)) != FULL_BITS
    }


def account(opened: "Opened", schemes: "Mapping[str, Scheme]", *, scales: bool = True) -> Account:
    """The bytes of `opened` with the layers in `schemes` (path → grid) quantised; `scales=False` leaves out all but
    the codes. Works on the meta device. Raises `PlanError` for a path that is not the model's."""
    from gossamer.models.containers import Containers
    from gossamer.models.stacks import shared_schemes
    from gossamer.models.ties import Ties

    model = opened.model
    layers = {layer.path: layer for layer in opened.hierarchy.layers()}
    unknown = next((path for path in schemes if path not in layers), None)
    if unknown is not None:
        raise PlanError(f"the model has no layer {unknown}: gossamer inspect lists its layers")
    containers = Containers.of(model)
    quantised: dict[str, list[tuple[Layer, Scheme]]] = {}
    for path, scheme in shared_schemes(layers.values(), schemes).items():
        quantised.setdefault(layers[path].tensor, []).append((layers[path], scheme))
    broken = Ties.of(model, {layer.module for found in quantised.values() for layer, _ in found})
    whole = Ties.of(model, set())
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    weight_bytes = dense_bytes = scale_bytes = 0
    for name, tensor in model.state_dict().items():
        if name in ignored:
            continue
        plain = tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
        dense_bytes += 0 if name in whole.kept else plain
        if name in broken.kept:
            continue
        for layer, scheme in quantised.get(name, ()):
            stored = containers.bytes(layer, scheme)
            codes = _code_bytes(layer, scheme, containers.form(layer, scheme))
            scale_bytes += stored - codes
            weight_bytes += stored if scales else codes
        weight_bytes += 0 if name in quantised else plain
    return Account(weight_bytes, dense_bytes, scale_bytes)


def _code_bytes(layer: Layer, scheme: "Scheme", form: str) -> int:
    """The codes alone: whole 32-bit words a row where packed, a byte each otherwise, 16 bits where dense."""
    if form == "dense":
        return 2 * layer.rows * layer.columns
    if form.endswith("fp4-pack-quantized"):
        return layer.rows * layer.columns // 2
    if form == "pack-quantized":
        return 4 * layer.rows * -(-layer.columns * scheme.bits // 32)
    return layer.rows * layer.columns
